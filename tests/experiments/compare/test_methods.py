"""The methods of the shipped comparisons: each is understood, each of their variants is run."""

import shlex
from fnmatch import fnmatch

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace
from shipped import AUTOENCODER, CONFIGS, ROOT, SMALL, draw_folders, dry_run, packed

from branchprune.experiments.arguments import files_as_options
from branchprune.experiments.compare import compare
from branchprune.experiments.compare import config as compare_config
from branchprune.experiments.compare import results as compare_results
from branchprune.experiments.compare.config import Budget
from branchprune.experiments.files import read_lines
from branchprune.experiments.run.config import make_parser, parse
from branchprune.experiments.run.prune_config import PruneConfig
from branchprune.experiments.variants import read_file

pytestmark = pytest.mark.usefixtures("without_charts")

NAMES = (
    *("vgg7_16px", "ablations_vgg7_16px", "cliff_vgg7_16px", "vgg16_cifar10", "full_size"),
    *("autoencoder_carla_cpu", "autoencoder_carla"),
)
FEW = ("few_images_16px", "few_images_forms", "few_images_networks", "cliff_norms_16px")
"""Comparisons whose methods are run elsewhere, each form on a smaller network."""
FILES = {name: CONFIGS / "compare" / f"{name}.yaml" for name in (*NAMES, *FEW)}
COMPARISONS = {name: compare_config.read(path) for name, path in FILES.items()}


def experiment(name):
    return "autoencoder_carla" if name.startswith("auto") else "vgg16_cifar10"


def form(settings):
    """Return what settings set, and to what where that is no number: others take the same path."""
    if isinstance(settings, dict):
        return {key: form(value) for key, value in settings.items()}
    numbers = isinstance(settings, int | float) and not isinstance(settings, bool)
    return "a number" if numbers else settings


def chosen():
    """Yield rows which together have every form of a variant that a method of their experiment has.

    Methods put the same variants together otherwise; those of comparisons for a GPU are the same
    as at the scale of two cores, and those of the file of the experiment, and of the methods of the
    field, are run elsewhere. What a method changes of its file alone is run with what others do.
    """
    files = ("autoencoder_carla", "vgg16_cifar10")
    seen = {name: [*read_file(CONFIGS / f"{name}.yaml").variants] for name in files}
    field = compare_config.read(CONFIGS / "methods.yaml").methods.values()
    seen["vgg16_cifar10"] += [row for method in field for row in method.rows]
    for name in NAMES:
        methods = sorted(COMPARISONS[name].methods.values(), key=lambda method: -len(method.rows))
        own, done, alone = read_file(FILES[name]).variants, seen[experiment(name)], {}
        for method in methods:
            if method.rows and {*method.rows} <= own.keys():
                alone |= {row: own[row] for row in method.rows}
                continue
            rows = [form(own[row]) if row in own else row for row in method.rows]
            if any(row not in done for row in rows):
                yield pytest.param(name, method.name, method.rows, id=f"{name}-{method.name}")
                done += rows
        fresh = {}
        for row, settings in alone.items():
            if (how := form(settings)) not in done:
                fresh[row] = settings
                done.append(how)
        for rows in packed(fresh):
            together = " + ".join(rows)
            yield pytest.param(name, together, rows, id=f"{name}-{together}")


def arguments(name, rows):
    return [str(FILES[name]), *(part for row in rows for part in ("--variant", row))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return draw_folders(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("name", "method", "rows"), list(chosen()))
def test_every_variant_of_a_method_runs(name, method, rows, folders, tmp_path):
    settings = folders[experiment(name)]["init_args"]
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"data": {"init_args": settings}}))
    options = ["--config", str(data), "--dense.epochs", "1", "--dense.checkpoint", "null"]
    options += ["--name", f"compare/{name}", "--method", method]
    vgg = [f"--model.init_args.stages={SMALL['vgg7']}"]
    options += vgg if experiment(name) == "vgg16_cifar10" else AUTOENCODER
    result = dry_run(arguments(name, rows), tmp_path / "run", options)
    assert result["method"] == method and result["dataset"]
    if "stage" not in method:  # of a dry run only the first rounds
        assert result["cost"]["small"]["params"] < 0.17 * result["cost"]["dense"]["params"]


def test_no_method_of_a_gpu_is_made_otherwise_than_on_two_cores():
    pairs = (("vgg16_cifar10", "vgg7_16px"), ("autoencoder_carla", "autoencoder_carla_cpu"))
    for large, small in pairs:
        rows = {m: COMPARISONS[small].methods[m].rows for m in COMPARISONS[large].methods}
        assert {m: x.rows for m, x in COMPARISONS[large].methods.items()} == rows


@pytest.mark.parametrize("name", [*NAMES, *FEW])
def test_every_method_is_understood(name):
    parser, pruning = make_parser(), ArgumentParser()
    pruning.add_class_arguments(PruneConfig, "prune")
    comparison, found = COMPARISONS[name], {}
    assert comparison.name == name
    assert all(isinstance(budget, Budget) for budget in comparison.budgets.values())
    for method, rows in ((each.name, each.rows) for each in comparison.methods.values()):
        config = parser.parse_args([*files_as_options(arguments(name, rows)), "--output", "x"])
        built = pruning.instantiate(Namespace(prune=config.prune)).prune
        rounds = built.rounds is not None and not built.rounds.gradual  # which end by themselves
        share = None if built.widths.target else 0.85 if rounds else 0.34375
        assert built.widths.keep == share and built.algorithm is not None
        found[method] = config.clone()
        for key in ("config", "method"):
            found[method].pop(key)
    different = {str(each) for each in found.values()}
    assert len(different) == len(found)  # no two methods are one


def test_the_papers_method_is_that_of_its_own_file():
    def pruning(*files):
        return make_parser().parse_args([*files_as_options(files), "--output", "x"]).prune

    full = str(FILES["full_size"])
    assert pruning(full, "--variant", "paper") == pruning(str(CONFIGS / "vgg16_cifar10.yaml"))


def test_the_methods_for_a_model_of_ones_own_go_with_a_copy_elsewhere(tmp_path):
    """The methods learn as their variants say, not as the file of the model says of its pruning."""
    shipped = yaml.safe_load((CONFIGS / "compare" / "own_model.yaml").read_text())
    model = yaml.safe_load((CONFIGS / "own_model.yaml").read_text())
    model["prune"] |= {"widths": {"keep": 0.25}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(model))
    path = tmp_path / "compare_mine.yaml"
    base = ["my.yaml", str(CONFIGS / "compare" / "methods.yaml")]
    path.write_text(yaml.safe_dump(shipped | {"base": base}))
    found = {}
    for name, method in compare_config.read(path).methods.items():
        rows = [part for row in method.rows for part in ("--variant", row)]
        prune = parse([str(path), *rows, "--output", str(tmp_path / "run")]).prune
        assert prune.widths.keep == 0.25
        found[name] = type(prune.algorithm).__name__, prune.task.get("teacher_weight")
    assert found.pop("blended by drawing a path, a teacher") == ("BlendConfig", 0.9)
    taught = {name for name, each in found.items() if each == ("CutConfig", 0.9)}
    assert taught == {"reconstruction, a teacher", "reconstruction, a teacher, Muon"}
    assert {found[name] for name in {*found} - taught} == {("CutConfig", None)}


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_results_are_those_of_todays_methods(name, monkeypatch):
    path = ROOT / "scripts" / "results" / "compare" / f"{name}.jsonl"
    comparison = COMPARISONS[name]
    runs = comparison.runs()
    for line in read_lines(path) if path.exists() else []:
        assert compare_results.run_of(line) in runs
        command = shlex.split(compare_results.todays_command(comparison, line, ROOT))
        assert command[:3] == ["branchprune", "compare", f"configs/compare/{name}.yaml"]
        options = compare.make_parser().parse_args(command[2:])
        [run] = [run for run in runs if fnmatch(run.name, *options.only)]
        assert (comparison.experiment, run.method, run.budget, run.seed) == tuple(
            line[key] for key in ("experiment", "method", "preset", "seed")
        )


@pytest.mark.parametrize(
    ("variant", "network", "label"),
    [
        ("resnet20", "ResNet", "accuracy"),
        ("resnet56", "ResNet", "accuracy"),
        ("mobilenet", "MobileNetV2", "accuracy"),
        ("carla", "Autoencoder", "PSNR in dB"),
    ],
)
def test_networks_of_few_images_are_made_and_their_dense_models_trained(variant, network, label):
    read = compare_config.read(FILES["few_images_networks"], [variant])
    chosen = ["--variant", variant, "--output", "x"]
    found = parse([str(FILES["few_images_networks"]), *chosen])
    assert read.name == f"few_images_networks+{variant}" and read.metric.label == label
    assert type(found.model).__name__ == network
    assert found.dense.checkpoint is None and found.dense.epochs
