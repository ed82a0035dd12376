"""Export and clean the notebooks and write README.md; fail if that changed anything: python tools/check_tree.py [--write]

With --write, changes are kept and named, and the exit status is 0. Either way the files are brought into step."""
import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def snapshot():
    "Path -> hash of everything that export, clean and README touch."
    files = [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("scaling_nb/**/*.py"), ROOT / "README.md", ROOT / "settings.ini"]
    return {str(f.relative_to(ROOT)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.exists() and "checkpoint" not in str(f) and "/outputs/" not in str(f)}


def main():
    before = snapshot()
    bin_ = Path(sys.executable).parent
    for command in (["nbdev_export"], ["nbdev_clean"]):
        subprocess.run([str(bin_ / command[0]), *command[1:]], cwd=ROOT, check=True)
    subprocess.run([sys.executable, str(ROOT / "tools" / "readme.py")], cwd=ROOT, check=True)
    after = snapshot()
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if not changed:
        print("Notebooks, modules and README.md agree.")
        return 0
    print("These files were out of step with their notebooks and are now written:\n  " + "\n  ".join(changed))
    if "--write" in sys.argv:
        return 0
    print("Look at them and commit them. Edit notebooks only, and run `make prepare` before a commit.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
