"""Hours, money and FLOPs: there and back, names as people write them, and no price out of nowhere."""
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_nb.hardware import HARDWARE, Hardware, dollars_of_flops, find_hardware, flops_of_dollars, flops_of_hours, hours_of_flops

ANY = st.sampled_from(sorted(HARDWARE))
POSITIVE = st.floats(1e-6, 1e9)


@given(ANY, POSITIVE, st.integers(1, 1000), st.floats(.01, 100))
def test_there_and_back(name, amount, count, price):
    h = find_hardware(name, price=price)
    assert hours_of_flops(flops_of_hours(amount, h, count), h, count) == pytest.approx(amount)
    assert dollars_of_flops(flops_of_dollars(amount, h), h) == pytest.approx(amount)
    assert dollars_of_flops(flops_of_hours(amount, h, count), h) == pytest.approx(amount*count*price)   # money is for every accelerator


def test_the_figures_are_dense_and_say_where_they_are_from():
    assert {n: h.peak_flops/1e12 for n, h in HARDWARE.items() if n in ("A100 80GB", "H100 SXM", "B200", "TPU v5p")} == {"A100 80GB": 312, "H100 SXM": 989, "B200": 2250, "TPU v5p": 459}
    for name, h in HARDWARE.items():
        assert h.name == name and h.source and h.dollars_per_hour is None and h.utilization == .4 and 1e10 < h.memory < 1e12
        if "with sparsity" in h.source: assert float(h.source.split(": ")[1].split()[0].replace(",", ""))*1e12 == pytest.approx(2*h.peak_flops, rel=.013)


@pytest.mark.parametrize("asked, name", [("h200", "H200"), ("NVIDIA A100-80GB", "A100 80GB"), ("rtx4090", "RTX 4090"), ("tpu V5P", "TPU v5p"), ("L4", "L4"), ("AMD Instinct MI300X", "MI300X")])
def test_names_as_people_write_them(asked, name): assert find_hardware(asked) is HARDWARE[name]


@pytest.mark.parametrize("asked, words", [("A100", "'A100 40GB' or 'A100 80GB'"), ("H100", "'H100 SXM' or 'H100 PCIe'"), ("RTX 4099", "Did you mean .*RTX 4090"),
                                          ("abacus", "must be one of"), ("", "must be one of")])
def test_unknown_and_ambiguous_names(asked, words):
    with pytest.raises(ValueError, match=words): find_hardware(asked)


def test_what_is_no_name():
    with pytest.raises(TypeError, match="`hardware` must be a name"): find_hardware(8)


def test_price_and_utilization_are_the_users():
    h = find_hardware("H200", price=3., utilization=.1)
    assert (h.dollars_per_hour, h.utilization, h.flops) == (3., .1, pytest.approx(989e11)) and HARDWARE["H200"].dollars_per_hour is None
    assert "10% of its peak" in str(h) and "assumption" in str(h) and "assumption" not in str(Hardware("mine", 5e9, source="measured here", utilization=1))


@pytest.mark.parametrize("make", [lambda: flops_of_dollars(10, "T4"), lambda: dollars_of_flops(1e18, "T4")])
def test_no_price_no_money(make):
    with pytest.raises(ValueError, match="No price is known of T4.*Give `price`"): make()


@pytest.mark.parametrize("make, field", [
    (lambda: Hardware("x", 0), "peak_flops"), (lambda: Hardware("x", None), "peak_flops"), (lambda: Hardware("x", 1e12, memory=-1), "memory"),
    (lambda: Hardware("x", 1e12, utilization=1.2), "utilization"),
    (lambda: Hardware("x", 1e12, dollars_per_hour=0), "dollars_per_hour"), (lambda: flops_of_hours(-1, "T4"), "hours"), (lambda: flops_of_hours(1, "T4", count=0), "count"),
    (lambda: hours_of_flops(1, "T4", count=1.5), "count"), (lambda: flops_of_dollars(0, "T4", price=1), "dollars")])
def test_numbers_out_of_range(make, field):
    with pytest.raises(ValueError, match=f"`{field}` must be"): make()


def test_it_needs_nothing():
    code = "import sys; import scaling_nb.hardware; print([m for m in sys.modules if m in ('torch', 'ray', 'numpy', 'pandas')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
