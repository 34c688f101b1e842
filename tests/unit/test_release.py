"""The kernel's release, in the forms in which kernels have it."""

import os

import pytest
from vm_onetoone_nat.kernel.release import kernel_release, parse_release


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("6.1.0-31-amd64", (6, 1)),
        ("6.12.9+bpo-cloud-amd64", (6, 12)),
        ("5.15-custom1", (5, 15)),
        ("5.15custom1", (5, 15)),
        ("5.15+", (5, 15)),
        ("5.18-rc3", (5, 18)),
        ("5.18~rc3", (5, 18)),
        ("5.4.0-1.el8.elrepo.x86_64", (5, 4)),
        ("2.6.32-754.el6.x86_64", (2, 6)),
        ("6.6.87.2-microsoft-standard-WSL2", (6, 6)),
        ("5.10_2.fc34", (5, 10)),
        ("10.0", (10, 0)),
        ("6.18.44-fc-v657", (6, 18)),
        ("custom-5.15", (0, 0)),
        ("6", (0, 0)),
        ("6.x", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_release(text: str, release: tuple[int, int]) -> None:
    """Digits that a builder has appended are no part of the number.

    Before, 5.15-custom1 was read as 5.151, and its addresses were not recorded.
    """
    assert parse_release(text) == release


def test_this_kernel() -> None:
    """The running kernel's release is read, and begins with these numbers."""
    major, minor = kernel_release()
    assert os.uname().release.startswith(f"{major}.{minor}")
