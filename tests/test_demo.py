"""The README's promise: one command trains on real text and prints the answer; a second one trains nothing."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def demo(tmp_path):
    p = subprocess.run([sys.executable, str(ROOT/"tools"/"demo.py"), "--out", str(tmp_path/"demo"), "--work", str(tmp_path)], capture_output=True, text=True, check=False, timeout=1500)
    assert p.returncode == 0, p.stdout[-3000:] + p.stderr[-3000:]
    return p.stdout


def answer(text): return text[text.index("To spend 5.00e12 FLOPs"):text.index("Wrote ")]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3000)
def test_the_demo_answers_and_repeats_nothing(tmp_path):
    first = demo(tmp_path)
    said = answer(first)
    assert re.search(r"N\*\s+[\d.]+k parameters  \(90 %: [\d.]+k to [\d.]+[kM][;)]", said) and re.search(r"D\*\s+[\d.]+M tokens", said) and "extrapolation" in said
    assert re.search(r"grade +[A-D]: ", said) and re.search(r"held out +\d\.\de11 FLOPs", said)
    inside, budgets = map(int, re.search(r"(\d) of (\d) budgets have a minimum inside", said).groups())
    assert budgets == 4 and (inside == 4 or "has no interior minimum" in said)
    for name in ("quickstart", "report"):
        page = (tmp_path/"demo"/f"{name}.html").read_text()
        assert "vegaEmbed" in page and not re.search(r'(?:src|href)="(?:https?:)?//', page), name
    assert "Traceback (most recent call last)" not in (tmp_path/"demo"/"quickstart.html").read_text()
    results = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.glob("outputs/quickstart/*/result.json")}
    attempts = {p: p.read_bytes() for p in tmp_path.glob("outputs/quickstart/*/attempt.json")}
    rounds = (tmp_path/"outputs"/"quickstart"/"rounds.json").read_bytes()
    assert len(results) >= 30 and b'"adaptive"' in rounds and b'"hold-out"' in rounds and b'"attempt": 1' in b"".join(attempts.values())

    again = demo(tmp_path)
    assert answer(again) == said
    assert results == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.glob("outputs/quickstart/*/result.json")}
    assert attempts == {p: p.read_bytes() for p in tmp_path.glob("outputs/quickstart/*/attempt.json")} and rounds == (tmp_path/"outputs"/"quickstart"/"rounds.json").read_bytes()
    assert "nothing was trained" in (tmp_path/"demo"/"quickstart.html").read_text()
