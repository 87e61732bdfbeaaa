"""A small YOLO is pruned by the trainer of ultralytics, validated, saved, and trained further."""

import copy

import pytest
import small_yolo
import torch
from models import relative
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

import branchprune as bp
from branchprune.ultralytics import BranchPruning, KeepWidths

pytestmark = pytest.mark.filterwarnings("default")
X = torch.rand(2, 3, 64, 96)


class Pruning(BranchPruning, DetectionTrainer):
    schedule = bp.Schedule([0.5, 0.0])


class Further(KeepWidths, DetectionTrainer):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("yolo")


@pytest.fixture(scope="module")
def pruned(folder):
    """The YOLO after its training, its trainer, and what was seen at the end of each epoch."""
    seen = []

    def look(trainer):
        alphas = [{*m.blended.alpha.values()} for m in (trainer.model, trainer.ema.ema)]
        seen.append((alphas, trainer.last.exists()))
        if trainer.epoch == 0:  # the wide path still carries the prediction
            trainer.best_fitness = trainer.stopper.best_fitness = 2.0

    torch.manual_seed(0)
    yolo = YOLO(small_yolo.write_yaml(folder))
    yolo.add_callback("on_model_save", lambda trainer: seen.append("saved"))
    yolo.add_callback("on_fit_epoch_end", look)
    yolo.train(trainer=Pruning, epochs=2, **small_yolo.training(folder, "pruned"))
    return yolo, yolo.trainer, seen


def test_alpha_falls_in_the_model_and_in_its_average(pruned):
    _, trainer, seen = pruned
    assert seen[:3] == [([{0.5}, {0.5}], False), "saved", ([{0.0}, {0.0}], True)]
    assert trainer.best_fitness < 2 and trainer.stopper.best_fitness < 2  # of the small one alone
    branch = trainer.model.blended.reduce.parameters()
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert all(id(p) in held for p in branch)
    assert Pruning.schedule.alpha == 0.5  # another training begins anew


def test_the_checkpoints_hold_the_small_model(pruned):
    yolo, trainer, _ = pruned
    blended = trainer.ema.ema.blended
    after = blended.plan.after.params
    assert after < 0.4 * blended.plan.before.params
    for path in (trainer.best, trainer.last):
        small = YOLO(path).model.float().eval()
        assert type(small) is DetectionModel and sum(p.numel() for p in small.parameters()) == after
        assert small.names == {0: "circle", 1: "square", 2: "triangle"}
        with torch.no_grad():  # in half precision, as ultralytics saves
            assert relative(blended.eval()(X)[0], small(X)[0]) < 1e-2
    assert type(yolo.model) is DetectionModel
    assert yolo.val(data=trainer.args.data, imgsz=64, plots=False, project=trainer.args.project)


def test_the_small_model_is_saved_and_loaded(pruned, folder):
    yolo, _, _ = pruned
    bp.save(yolo.model, folder / "small.safetensors")
    dense = DetectionModel(str(folder / "small.yaml"), nc=3, verbose=False)
    loaded = bp.load(dense, folder / "small.safetensors").eval()
    yolo.save(folder / "again.pt")
    again = YOLO(folder / "again.pt").model.float().eval()
    with torch.no_grad():
        wanted = copy.deepcopy(yolo.model).float().eval()(X)[0]
        assert torch.equal(loaded.float()(X)[0], wanted) and torch.equal(again(X)[0], wanted)


def test_it_is_trained_further_at_its_widths(pruned, folder):
    _, pruning, _ = pruned
    yolo = YOLO(pruning.best)
    before = [p.shape for p in yolo.model.parameters()]
    yolo.train(trainer=Further, epochs=1, **small_yolo.training(folder, "further"))
    assert [p.shape for p in yolo.model.parameters()] == before
    trainer = yolo.trainer
    wide = DetectionTrainer.get_model(trainer, yolo.model.yaml, yolo.model, verbose=False)
    assert [p.shape for p in wide.parameters()] != before  # what it does by itself
    trainer.data = trainer.data | {"nc": 4}
    with pytest.raises(bp.PruneError, match="collapsed with 3 classes and the data has 4"):
        trainer.get_model(yolo.model.yaml, yolo.model)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"epochs": 1}, r"epochs \(=1\) must be at least 2, which the schedule takes"),
        ({"compile": True}, r"compile \(=True\) must be False while a model is pruned"),
        ({"time": 1.0}, r"time \(=1.0\) must be None"),
        ({"distill_model": "large.pt"}, r"distill_model \(='large.pt'\) must be None"),
    ],
)
def test_what_has_not_been_tried_is_refused_before_training(folder, option, told):
    options = small_yolo.training(folder, "refused", epochs=2, model="yolov8n.yaml") | option
    with pytest.raises(bp.PruneError, match=told):
        Pruning(overrides=options)
