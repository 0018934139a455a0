"""Freed memory stays with the process where that can be asked for."""

import platform
import resource

import pytest
import torch

from latentworks.engine import keep_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to")
def test_the_pages_of_large_tensors_are_not_mapped_again_and_again():
    keep_memory(torch.device("cpu"))
    for _ in range(20):  # an aligned block does not fit where one of its size was: it takes some until there is room
        torch.zeros(16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(16 << 20)  # 16,384 pages of 4 KiB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 16_384
