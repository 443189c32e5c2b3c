"""``python -m jxent``, run as a user runs it, and what it reports of a broken loss."""

import json
import math
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import __main__
from jxent._selftest import choices, devices, errors, iris, report
from jxent._selftest.table import TABLE
from support.tiers import quick

FAMILIES = report.FAMILIES
LOSS = "softmax_cross_entropy_with_integer_labels"
SMALL = (errors.Family("softmax", (16, 1), (16, 2), ((LOSS, "logits, labels"),)),)


def run(*options):
    return subprocess.run(
        [sys.executable, "-m", "jxent", *options], capture_output=True, text=True, check=False
    )


@pytest.fixture
def small(monkeypatch):
    """A report of one loss, which jxent alone has."""
    monkeypatch.setattr(report, "FAMILIES", SMALL)
    monkeypatch.setattr(report, "implementations", lambda: {"jxent": vars(jxent)})
    monkeypatch.setattr(iris, "train", lambda: ([(0, 1.0)], 1.0))


CHOSEN = [LOSS, "entropy"]


def of_one_report(test):
    """One worker makes the report for all of these tests; the whole one takes a minute and more."""
    return pytest.mark.full(pytest.mark.xdist_group("report")(test))


@pytest.fixture(scope="module")
def finished():
    return run("--json", "--losses", *CHOSEN)


@pytest.fixture(scope="module")
def document(finished):
    return json.loads(finished.stdout)


@of_one_report
def test_every_loss_is_within_its_bounds(finished, document):
    assert document["missed"] == []
    assert (finished.returncode, finished.stderr) == (0, "")
    for line in document["numerics"]:
        for kind in ("value", "gradient"):
            jxents = line[kind]["jxent"]
            assert jxents["entries"] > 0
            assert jxents["of_bound"] <= 1, line
            assert jxents["beyond"] == 0, line


@of_one_report
def test_it_names_device_and_versions(document):
    device = jax.devices()[0]
    kind = {"platform": device.platform, "kind": device.device_kind, "id": device.id}
    assert document["device"] == kind
    versions = {"jxent": jxent.__version__, "jax": jax.__version__}
    versions["python"] = sys.version.split()[0]
    assert versions.items() <= document["versions"].items()
    assert document["versions"]["jaxlib"]


@of_one_report
def test_the_classifier_learns(document):
    losses = [loss for _, loss in document["iris"]["loss"]]
    assert losses[0] == pytest.approx(math.log(3), abs=1e-6)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1
    assert document["iris"]["accuracy"] >= 0.96


@of_one_report
def test_every_loss_meets_every_dtype(document):
    found = {(line["loss"], line["dtype"]) for line in document["numerics"]}
    assert found == {(name, dtype) for name in CHOSEN for dtype in errors.DTYPES}


def test_every_reported_loss_has_a_family():
    reported = {name for family in report.FAMILIES for name, _ in family.losses}
    assert reported == {row.name for row in TABLE.values() if row.reported}


@of_one_report
def test_the_textbook_fails_where_the_library_does_not(document):
    lines = {(line["loss"], line["inputs"], line["dtype"]): line for line in document["numerics"]}
    line = lines[LOSS, "logits, labels", "float32"]
    assert line["value"]["plain"]["beyond"] > 0
    assert line["gradient"]["plain"]["error"] == "nan"


def test_help_explains(capsys):
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--help"])
    text = capsys.readouterr().out
    assert all(x in text for x in ("worst error", "--json", "--device", *choices.names()))


def refused(capsys, *options):
    """The last line of what the command says of options that it refuses."""
    with pytest.raises(SystemExit, match="2"):
        __main__.main(options)
    return capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_option_is_refused(capsys):
    assert refused(capsys, "--unknown").endswith("unrecognized arguments: --unknown")


@pytest.mark.parametrize("name", ["linear_softmax_cross_entropy", "chunked"])
def test_losses_are_chosen(name, small, monkeypatch, capsys):
    """And that of a head has a row, which is within its bounds."""
    monkeypatch.setattr(errors, "DTYPES", ("bfloat16",))
    monkeypatch.setattr(report, "FAMILIES", FAMILIES)
    monkeypatch.setattr(report, "implementations", lambda: {"jxent": report.HEADS})
    assert __main__.main(["--losses", name, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (line,) = document["numerics"]
    assert line["loss"] == name
    for kind in ("value", "gradient"):
        assert line[kind]["jxent"]["entries"] >= 12
        assert line[kind]["jxent"]["of_bound"] < 1
    assert document["verdict"].startswith("For the losses chosen, this device keeps the promise")


def test_families_are_of_the_chosen_losses():
    chosen = ["chunked", "entropy", LOSS]
    found = {name for family in choices.families(chosen) for name, _ in family.losses}
    assert found == set(chosen)
    assert len([loss for f in choices.families([LOSS]) for loss in f.losses]) == 2
    assert choices.families(None) == report.FAMILIES


def test_an_unknown_loss_is_refused(capsys):
    for name, wanted in (("chunkd", "like chunked, got"), ("hinge", "one of log_softmax, ")):
        message = refused(capsys, "--losses", "entropy", name)
        assert f"argument --losses: must be a loss of the report, {wanted}" in message
        assert message.endswith(f"got '{name}'")


def test_the_device_is_chosen(small, monkeypatch, capsys):
    found = []

    def look(x):
        found.append(x.devices())
        return np.asarray(x, np.float64)

    def train():
        found.append(jnp.zeros(3).devices())
        return [(0, 1.0)], 1.0

    monkeypatch.setattr(errors, "_as_float64", look)
    monkeypatch.setattr(iris, "train", train)
    name = f"{jax.default_backend()}:{len(jax.local_devices()) - 1}"
    last = jax.local_devices()[-1]
    assert __main__.main(["--device", name]) == 0
    assert f"device: {last.platform}:{last.id} ({last.device_kind})" in capsys.readouterr().out
    assert len(found) > 4
    assert set().union(*found) == {last}


def test_a_platform_is_its_first_device():
    assert choices.device("cpu") == choices.device("cpu:0") == jax.local_devices(backend="cpu")[0]


@pytest.mark.parametrize("name", ["abacus", "cpu:99", "cpu:", "cpu:x", ":0", ""])
def test_an_unknown_device_is_refused(name, capsys):
    message = refused(capsys, "--device", name)
    assert "argument --device: must be a device of this machine (" in message
    assert "cpu:0" in message
    assert message.endswith(f"got '{name}'")


integer_loss = getattr(jxent, LOSS)


def broken(logits, labels):
    return 1.0001 * integer_loss(logits, labels)


def undefined(logits, labels):
    return integer_loss(logits, labels) * jnp.where(logits[:, 0] > 40, jnp.nan, 1.0)


def too_steep(logits, labels):
    loss = integer_loss(logits, labels)
    return loss + 0.05 * (loss - jax.lax.stop_gradient(loss))


@pytest.mark.parametrize(
    ("function", "kind"), [(broken, "value"), (undefined, "value"), (too_steep, "gradient")]
)
@pytest.mark.parametrize("dtype", quick(errors.DTYPES))
def test_a_broken_loss_misses_its_bound(function, kind, dtype):
    lines = list(errors.measure(SMALL, {"jxent": {LOSS: function}}, (dtype,)))
    missed = report.missed(lines)
    assert any(f"{LOSS}, {dtype}: {kind} beyond its bound" in line for line in missed)


@pytest.mark.parametrize(
    ("size", "dtype", "exponent"),
    [
        (1.0, "bfloat16", -7), (0.999, "bfloat16", -8), (3e-39, "bfloat16", -133),
        (1.999, "float16", -10), (2.0, "float16", -9), (1e-30, "float16", -24),
    ],
)  # fmt: skip
def test_the_unit_in_the_last_place(size, dtype, exponent):
    """It is the distance to the next number; below the normal ones, the least of them all."""
    assert errors._last_place(size, dtype) == 2.0**exponent


def test_nan_is_beyond_every_bound():
    error = errors.Error()
    for row, distance in enumerate((1.0, math.nan, 2.0, 5.0)):
        error.meet(distance, 4.0, row)
    assert math.isnan(error.worst)
    assert math.isnan(error.of_bound)
    assert (error.row, error.entries, error.beyond) == (1, 4, 2)


@pytest.mark.parametrize(("function", "status"), [(integer_loss, 0), (broken, 1)])
@pytest.mark.parametrize("options", [[], ["--json"], ["--losses", LOSS]])
def test_status_and_last_line_tell(function, status, options, small, monkeypatch, capsys):
    monkeypatch.setattr(errors, "DTYPES", ("float32",))
    monkeypatch.setattr(report, "implementations", lambda: {"jxent": {LOSS: function}})
    assert __main__.main(options) == status
    out, err = capsys.readouterr()
    assert err == ""
    assert (f"{LOSS}, float32: value beyond its bound" in out) == bool(status)
    last = json.loads(out)["verdict"] if "--json" in options else out.splitlines()[-1]
    is_chosen = "--losses" in options
    subject, of = ("For the losses chosen, this", LOSS) if is_chosen else ("This", "jxent")
    if status:
        assert last.startswith(f"{subject} device does not keep the promise: ")
        number, total = map(int, re.findall(r"(\d+) of (\d+) values and gradient entries", last)[0])
        assert 0 < number < total
        assert last.endswith(f"entries of {of} are beyond their bounds.")
    else:
        assert last == (
            f"{subject} device keeps the promise:"
            f" every value and gradient of {of} is within its bound."
        )


def test_a_device_with_worse_functions_is_named(monkeypatch, capsys, small):
    """The report begins with them; whether the losses suffer is for their bounds to say."""
    monkeypatch.setattr(errors, "DTYPES", ("float32",))
    rough = devices.ELEMENTARY["log"]._replace(ours=lambda x: jnp.log(x) * (1 + 2.0**-18))
    for function, is_worse in ((devices.ELEMENTARY["log"], False), (rough, True)):
        monkeypatch.setitem(devices.ELEMENTARY, "log", function)
        assert __main__.main([]) == 0
        first, _, _ = capsys.readouterr().out.partition("Fisher's iris")
        assert all(f"\n  {name} " in first for name in devices.ELEMENTARY)
        assert ("worse than what the bounds were derived from: log errs by" in first) == is_worse
    assert __main__.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)["elementary"]
    assert {name for name, row in found.items() if row["jxent"] > row["assumed"]} == {"log"}


@pytest.mark.parametrize(
    ("platform", "kind", "row", "published"),
    [
        ("cpu", "cpu", "tanh", 5),
        ("gpu", "NVIDIA H200", "tanh", 5.5),
        ("tpu", "TPU v5 lite", "tanh", 1365.5),
        ("tpu", "TPU v5", "log", 62),
        ("tpu", "TPU v6 lite", "log", 2.5),
        ("tpu", "TPU v9", "log", None),
    ],
)
def test_what_is_published_of_a_device(platform, kind, row, published):
    device = SimpleNamespace(platform=platform, device_kind=kind)
    assert devices.published(row, device) == published


@pytest.mark.parametrize("known", [True, False])
def test_a_report_of_another_kind_of_device_says_so(known, small, monkeypatch, capsys):
    monkeypatch.setattr(errors, "DTYPES", ("float32",))
    kind = jax.devices()[0].device_kind
    monkeypatch.setattr(__main__, "KNOWN", {kind} if known else set())
    __main__.main([])
    text = capsys.readouterr().out
    assert ("This is the first report of its kind" in text) == (not known)
    address = __main__._issues()
    assert (f"no figures for {kind}.\nPlease send it to {address}\n" in text) == (not known)
    assert text.splitlines()[-1].startswith("This device keeps the promise")
    __main__.main(["--json"])
    assert json.loads(capsys.readouterr().out)["first_of_its_kind"] == (not known)


def test_reports_go_to_the_projects_issues(monkeypatch):
    """An installation knows their address, and a package that is not installed has words for it."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    urls = tomllib.loads(project.read_text())["project"]["urls"]
    assert __main__._issues() == urls["Issues"]

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", absent)
    assert __main__._issues() == "the issues of jxent"


def test_without_optax_its_column_is_empty(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax.losses", None)
    assert list(report.implementations()) == ["jxent", "plain"]


def test_a_terminal_sees_progress(small, monkeypatch, capsys):
    monkeypatch.setattr(errors, "DTYPES", ("float32", "float16"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    __main__.main(["--json"])
    out, err = capsys.readouterr()
    counts = re.findall(r"(\d) of 2 programs compiled, (\d) of 2 errors found", err)
    assert counts == sorted(counts)
    assert {("0", "0"), ("2", "1"), ("2", "2")} <= set(counts) | {("2", "1")}
    assert err.split("\r")[-1] == ""
    json.loads(out)


def test_the_data_are_fishers():
    measurements, species = iris.load()
    assert measurements.shape == (150, 4)
    np.testing.assert_array_equal(np.bincount(species), [50, 50, 50])
    means = [measurements[species == i].mean(0) for i in range(3)]
    exact = [5.006, 3.428, 1.462, 0.246], [5.936, 2.770, 4.260, 1.326], [6.588, 2.974, 5.552, 2.026]
    np.testing.assert_allclose(means, exact, rtol=1e-5)
