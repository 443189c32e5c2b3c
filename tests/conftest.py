"""Configuration of the whole suite."""

import gc

import jax
import pytest

from jxent._selftest.table import TABLE
from support import tpu

# Traces are many objects that live long: by default their collection takes 7 % of the time.
gc.set_threshold(100_000, 20, 20)

# GPUs and TPUs would round the factors of float32 products to fewer bits.
jax.config.update("jax_default_matmul_precision", "highest")

# Sharding is tested over eight devices where the platform can pretend to have them.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    """Compiled programs are kept for the other workers, and for the next run."""
    directory = config.rootpath / ".pytest_cache" / f"compiled-by-jax-{jax.__version__}"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure")
    parser.addoption(
        "--full", action="store_true", help="with the full crosses, which take minutes"
    )
    parser.addoption("--tpu", choices=tpu.ARITHMETICS, help="with a TPU's arithmetic, on a CPU")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist looks for the groups afterwards.
def pytest_collection_modifyitems(config, items):
    # One worker has all tests of a function, so that each trace of it is made once.
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        for kind in ("case", "row", "name"):
            name = getattr(parameters.get(kind), "name", parameters.get(kind))
            if isinstance(name, str) and name in TABLE:
                item.add_marker(pytest.mark.xdist_group(name))
    if not config.getoption("--full"):
        slow = {i for i in items if i.get_closest_marker("full") or i.get_closest_marker("aot")}
        config.hook.pytest_deselected(items=list(slow))
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="session", autouse=True)
def _arithmetic(request):
    if name := request.config.getoption("--tpu"):
        with tpu.arithmetic(name):
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _strict_promotion(request):
    """No implicit promotion of dtypes and ranks, except where a peer library needs it."""
    if request.node.get_closest_marker("peer"):
        yield
    else:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if not hasattr(report, "wasxfail"):
        _forbid_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _forbid_skip(collector.config, report)
    return report


def _forbid_skip(config, report):
    if config.getoption("--no-skips") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips forbids: {report.longrepr}"
