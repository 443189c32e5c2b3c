"""Configuration of the whole suite."""

import jax
import pytest

# Sharding is tested over eight devices where the platform can pretend to have them.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure")


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
