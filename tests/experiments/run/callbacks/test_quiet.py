"""What libraries do not say in the midst of a run."""

import logging

from torch.utils import cpp_extension

from branchprune.experiments.run.callbacks.quiet import quiet_libraries


def test_that_there_is_no_gpu_is_not_logged_when_models_are_compiled(monkeypatch):
    records = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CUDA_HOME", "here")
    cpp_extension.logger.addHandler(handler)
    level = cpp_extension.logger.level
    try:
        cpp_extension.logger.setLevel(logging.WARNING)
        cpp_extension._find_cuda_home()
        assert "No CUDA runtime" in records.pop().getMessage()
        quiet_libraries()
        cpp_extension._find_cuda_home()
    finally:
        cpp_extension.logger.removeHandler(handler)
        cpp_extension.logger.setLevel(level)
    assert not records
