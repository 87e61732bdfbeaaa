"""What a batch of images in memory holds, against computations with NumPy."""

import copy

import numpy as np
import pytest
import torch
from given_images import ALL, Divided, Given, attach, possible, same

from branchprune.data.batches import epoch_seed
from branchprune.errors import PruneError


@pytest.mark.parametrize("labels", ["own", None])
def test_an_epoch_depends_on_its_number_alone(labels):
    data = Given(labels=labels, **ALL)
    epochs = [list(data.train_dataloader()) for _ in range(3)]
    again = copy.deepcopy(data)
    assert not same(epochs[0], epochs[1]) and not same(epochs[1], epochs[2])
    torch.manual_seed(7)
    next(iter(again.train_dataloader()))  # an epoch that is not finished
    for epoch in (2, 0, 1):
        attach(again, epoch)
        assert same(again.train_dataloader(), epochs[epoch])
    again.seed = 1
    assert not same(again.train_dataloader(), epochs[1])


def test_seed_and_epoch_are_not_added_up():
    data = Given(**ALL)
    attach(data, 1)
    first = list(data.train_dataloader())
    data.seed = 1
    attach(data, 0)
    assert not same(data.train_dataloader(), first)


def test_pairs_of_seed_and_epoch_draw_apart():
    pairs = [(seed, epoch) for seed in range(4) for epoch in range(2000)]
    assert len({epoch_seed(*pair) for pair in pairs}) == len(pairs)


def test_without_a_seed_it_is_that_of_torch():
    seeds = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        seeds += [Given().seed, Given(seed=0).seed]
    assert seeds == [3, 0, 4, 0]


def test_no_global_generator_is_used():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    data = Divided(limit_train=20, **ALL)
    batches = [list(loader()) for loader in (data.train_dataloader, data.val_dataloader)]
    assert len(batches[0]) == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 2])
def test_an_augmented_image_is_a_crop_of_its_original(padding, flip, channels_last):
    data = Given(crop_padding=padding, flip=flip, channels_last=channels_last)
    data.setup()
    mean, std = (x.numpy()[:, None, None] for x in (data.mean, data.std))
    originals = [(x / 255 - mean) / std for x in data.given["train"].numpy()]
    crops = [possible(x, padding, 6, 5, flip) for x in originals]
    seen = []
    for _ in range(20):
        for inputs, labels in data.train_dataloader():
            assert inputs.dtype == torch.float32 and inputs.shape == (8, 3, 6, 5)
            assert inputs.is_contiguous(memory_format=torch.channels_last) == channels_last
            for x, label in zip(inputs.numpy(), labels, strict=True):
                match = [k for k, v in crops[label].items() if np.allclose(x, v, atol=1e-5)]
                assert len(match) == 1
                seen += match
    assert set(seen) == crops[0].keys()
    if flip:
        assert abs(np.mean([mirrored for *_, mirrored in seen]) - 0.5) < 0.06


def test_every_image_is_seen_once_and_only_full_batches_are_trained_on():
    data = Given(n=43)
    epoch = [labels for _, labels in data.train_dataloader()]
    assert [len(labels) for labels in epoch] == [8] * 5 == [8] * len(data.train_dataloader())
    assert len(torch.cat(epoch).unique()) == 40
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        assert [len(x) for x, _ in loader] == [7] * 6 + [1] and len(loader) == 7
        assert torch.cat([y for _, y in loader]).tolist() == list(range(43))
        found = torch.cat([x for x, _ in loader])
        mean, std = data.mean[:, None, None], data.std[:, None, None]
        assert torch.allclose(found, (data.given[split] / 255 - mean) / std, atol=1e-5)


def test_noise_has_its_standard_deviation_and_targets_are_clean():
    data = Given(n=400, labels=None, noise=0.1, crop_padding=1, flip=True, batch_size=100)
    inputs, targets = (torch.cat(x) for x in zip(*data.train_dataloader(), strict=True))
    noise = inputs - targets
    assert abs(noise.std() - 0.1) < 0.002 and abs(noise.mean()) < 0.002
    data.augmentation = Given(crop_padding=1, flip=True).augmentation
    data.epochs_begun = 0
    clean, also = (torch.cat(x) for x in zip(*data.train_dataloader(), strict=True))
    assert torch.equal(clean, also) and torch.equal(clean, targets)
    assert clean.min() == 0 and clean.max() == 1
    assert all(torch.equal(x, y) for x, y in data.val_dataloader())


def test_inputs_and_targets_do_not_share_memory():
    data = Given(labels=None)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        inputs, targets = next(iter(loader))
        inputs.zero_()
        assert targets.any() and data.splits["val"][0].any()


def test_noise_is_in_grey_values_where_inputs_are_normalised():
    data = Given(n=400, noise=0.1, batch_size=100)
    noisy = torch.cat([x for x, _ in data.train_dataloader()])
    data.augmentation, data.epochs_begun = Given().augmentation, 0
    clean = torch.cat([x for x, _ in data.train_dataloader()])
    found = (noisy - clean).std((0, 2, 3)) * data.std
    assert torch.allclose(found, torch.tensor(0.1), atol=0.004)


def test_mean_and_std_are_those_of_the_training_images():
    data = Given(n=50)
    data.given["train"][:, 1] //= 4
    data.given["train"][:, 2] = 77
    data.setup()
    values = data.given["train"].numpy() / 255
    assert np.allclose(data.mean, values.mean((0, 2, 3)), atol=1e-6)
    assert np.allclose(data.std[:2], values.std((0, 2, 3))[:2], atol=1e-6)
    assert data.std[2] == 1  # constant
    inputs = torch.cat([x for x, _ in data.train_dataloader()])
    assert inputs.isfinite().all() and abs(inputs.mean()) < 0.1


@pytest.mark.parametrize("labels", ["own", None])
def test_inputs_are_normalised_by_what_is_given(labels):
    mean, std = [0.485, 0.456, 0.406], [0.25, 0.5, 2.0]
    data = Given(labels=labels, mean=mean, std=std)
    (inputs, targets), *_ = data.val_dataloader()
    expected = (data.given["val"].numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(
        std, (3, 1, 1)
    )
    assert np.allclose(inputs, expected[: len(inputs)], atol=1e-5)
    if labels is None:
        assert torch.equal(inputs, targets)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"mean": [0.5] * 3},
            r"mean \(=\[0.5, 0.5, 0.5\]\) and std \(=None\) must be given together",
        ),
        (
            {"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]},
            r"std \(=\[0.5, 0.0, 0.5\]\) must be above 0",
        ),
        ({"mean": [0.5], "std": [0.5]}, "must have a number for each of the 3 channels"),
    ],
)
def test_what_inputs_cannot_be_normalised_by_is_refused(given, said):
    with pytest.raises(PruneError, match=said):
        Given(**given).setup()
