"""Reads settings.ini, the one source of version and requirements."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = config["DEFAULT"]
statuses = {"1": "1 - Planning", "2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}


def described():
    "README.md as it is shown elsewhere than in the repository: links and pictures by their whole address."
    readme = Path(__file__).with_name("README.md")
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    text = re.sub(r"\]\((?!https?://|#)", f"]({cfg['git_url']}/blob/{cfg['branch']}/", text)
    return re.sub(r'((?:src|srcset)=")(?!https?://)', rf"\g<1>{cfg['git_url']}/raw/{cfg['branch']}/", text)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=described(),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=cfg["keywords"],
    url=cfg["git_url"],
    project_urls={
        "Source": cfg["git_url"],
        "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md",
        "Issues": f"{cfg['git_url']}/issues",
    },
    packages=find_packages(include=["scaling_nb", "scaling_nb.*"]),
    package_data={"scaling_nb": ["static/*", "py.typed"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
    classifiers=[
        f"Development Status :: {statuses[cfg['status']]}",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",  # what CI runs
        "Typing :: Typed",
        "Framework :: Jupyter",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    entry_points={"nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
