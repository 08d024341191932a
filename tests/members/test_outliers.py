import itertools
import math

import pytest
import torch
from torch import nn

from ensexport.members.outliers import Summary, find_outliers, summarise

LABELS = [f"member {index} (fold_{index}.pt)" for index in range(12)]
N_STEPS = 120


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32))
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.body(x))))


class Convnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x.view(-1, 1, 4, 4))))
        return self.head(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def train(architecture, seed, *, lr=2e-3, n_steps=N_STEPS, weight_decay=0.01):
    """Learn four noisy patterns; each seed leaves out another fifth of the examples."""
    data = torch.Generator().manual_seed(7)
    patterns = torch.randn(4, 16, generator=data)
    labels = torch.randint(4, (500,), generator=data)
    inputs = patterns[labels] + 0.7 * torch.randn(500, 16, generator=data)
    fold = torch.arange(500) % 5 != seed % 5
    inputs, labels = inputs[fold], labels[fold]
    torch.manual_seed(seed)
    model = architecture().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    for _ in range(n_steps):
        rows = torch.randint(len(labels), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    return model.state_dict()


def scaled(state, factor):
    return {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in state.items()}


@pytest.fixture(scope="module", params=[Perceptron, Convnet], ids=["perceptron", "convnet"])
def ensemble(request):
    """Ten members of different seeds, folds, learning rates and weight decays."""
    rates = [1e-3, 2e-3, 3e-3, 5e-3, 1e-2]
    members = [
        train(
            request.param, seed, lr=rates[seed % 5], n_steps=N_STEPS * (1 + seed % 2), weight_decay=[0, 0.1][seed % 2]
        )
        for seed in range(10)
    ]
    return request.param, [summarise(member) for member in members], members[0]


def make_bad(kind, architecture, healthy):
    match kind:
        case "untrained":
            return train(architecture, 50, n_steps=0)
        case "first step":
            return train(architecture, 50, n_steps=1)
        case "diverged":
            return train(architecture, 50, lr=1.0)
        case "collapsed":
            return scaled(healthy, 0)
        case "scaled up":
            return scaled(healthy, 10)
        case "scaled down":
            return scaled(healthy, 0.1)


BAD = ["untrained", "first step", "diverged", "collapsed", "scaled up", "scaled down"]


def test_trained_members_of_other_seeds_folds_and_learning_rates_raise_no_alarm(ensemble):
    _, members, _ = ensemble
    for n_members in (1, 2, 3, 10):
        for some in itertools.combinations(members, n_members):
            assert find_outliers(some, LABELS) == []


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_member_is_found_and_no_other(ensemble, kind):
    architecture, members, healthy = ensemble
    bad = summarise(make_bad(kind, architecture, healthy))
    for others in ([*members[:4]], [*members[:9]], [members[0], members[2]]):
        found = find_outliers([*others[:1], bad, *others[1:]], LABELS)
        assert [outlier.member_index for outlier in found] == [1]
        assert found[0].text.startswith("member 1 (fold_1.pt): ")
        assert found[0].text.endswith(": look at its training log; leave it out or train it again.")


@pytest.mark.parametrize("kind", BAD)
def test_of_two_members_nothing_says_which_is_wrong(ensemble, kind):
    architecture, members, healthy = ensemble
    bad = summarise(make_bad(kind, architecture, healthy))
    for pair in ([members[0], bad], [bad, members[0]]):
        (found,) = find_outliers(pair, LABELS)
        assert found.member_index is None
        assert LABELS[0] in found.text
        assert LABELS[1] in found.text
        assert "nothing says which of two is wrong: in the first, " in found.text
        assert found.text.endswith(": look at both training logs; train the worse one again.")


def test_one_member_is_never_an_outlier():
    assert find_outliers([], []) == find_outliers([Summary({"w": 0.0}, 0)], LABELS) == []


def texts(*members):
    return [outlier.text.removesuffix(": look at its training log; leave it out or train it again.")
            for outlier in find_outliers(members, LABELS)]  # fmt: skip


def norms(batches=None, **changes):
    return Summary({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0} | changes, batches)


def test_the_bounds():
    good = [norms(), norms()]
    assert texts(*good, norms(b=19.9)) == texts(*good, norms(b=0.051)) == texts(*good, norms(a=5.0, b=5.0)) == []
    start = "member 2 (fold_2.pt): the norm of"
    assert texts(*good, norms(b=20.0)) == [f"{start} 'b' is 20 times the members' median"]
    assert texts(*good, norms(b=0.05)) == [f"{start} 'b' is 1/20 of the members' median"]
    assert texts(*good, norms(a=40.0, b=30.0)) == [
        f"{start} 'a' and 1 other tensor is 30 to 40 times the members' median"
    ]
    assert texts(*good, norms(a=4.0, b=4.0, c=4.0)) == [
        f"{start} 'a' and 2 other tensors is 4 times the members' median"
    ]
    assert texts(*good, norms(a=5e7, b=0.04)) == [
        f"{start} 'a' is 5e+07 times the members' median; the norm of 'b' is 1/25 of the members' median"
    ]


def test_zeros_and_batches():
    good = [norms(400), norms(400)]
    assert texts(*good, norms(20)) == texts(*good, norms(10**6)) == texts(norms(0), norms(0), norms(0)) == []
    assert texts(*good, norms(19)) == [
        "member 2 (fold_2.pt): its BatchNorm layers have seen 19 training batches, against 400 in most members"
    ]
    assert find_outliers([*good, norms(1)], LABELS)[0].tensor is None
    assert texts(*good, norms(1, b=0.0)) == [
        "member 2 (fold_2.pt): 'b' is all zeros, unlike in most members; its BatchNorm layers have seen 1 training "
        "batch, against 400 in most members"
    ]
    assert texts(norms(b=0.0), norms(b=0.0), norms()) == []


def test_two_that_differ():
    (found,) = find_outliers([norms(b=0.0), norms(b=2.0)], LABELS)
    assert (found.member_index, found.tensor) == (None, "b")
    assert found.text == (
        "member 0 (fold_0.pt) and member 1 (fold_1.pt) stand far apart, and nothing says which of two is wrong: in the "
        "first, 'b' is all zeros, unlike in the second: look at both training logs; train the worse one again."
    )
    (other,) = find_outliers([norms(), norms(a=30.0)], LABELS)
    assert "in the first, the norm of 'a' is 1/30 of that of the second: look" in other.text


def test_two_bad_members_of_five_are_both_found():
    found = find_outliers([norms(), norms(a=30.0), norms(), norms(b=0.0), norms()], LABELS)
    assert [(outlier.member_index, outlier.tensor) for outlier in found] == [(1, "a"), (3, "b")]


def test_members_with_nan_are_passed_over_and_keep_their_place():
    bad = norms(a=math.nan)
    assert texts(bad, norms(), norms(a=math.inf), norms(), norms(a=50.0)) == [
        "member 4 (fold_4.pt): the norm of 'a' is 50 times the members' median"
    ]
    assert find_outliers([bad, norms(), norms(a=50.0)], LABELS)[0].text.startswith("member 1 (fold_1.pt) and member 2")
    assert find_outliers([bad, norms()], LABELS) == []
    assert not summarise({"a": torch.full((8,), math.nan)}).is_finite


def test_tensors_that_not_all_members_have_are_not_compared():
    assert texts(norms(e=5.0), norms(), norms(e=0.0), norms(9), norms()) == []


def test_a_summary_holds_norms_of_floats_and_the_most_batches():
    state = {
        "w": torch.full((4, 4), 0.5),
        "half": torch.full((16,), 60000.0, dtype=torch.float16),
        "bfloat": torch.full((16,), 2.0, dtype=torch.bfloat16),
        "tiny": torch.full((8,), 0.5).to(torch.float8_e4m3fn),
        "large": torch.full((16,), 1e30),
        "complex": torch.full((8,), 3 + 4j),
        "parameter": nn.Parameter(torch.ones(9)),
        "strided": torch.ones(8, 8)[:, ::2],
        "ids": torch.arange(100),
        "mask": torch.ones(100, dtype=torch.bool),
        "scale": torch.tensor(1e30),
        "bias": torch.ones(7),
        "empty": torch.ones(0, 8),
        "bn1.num_batches_tracked": torch.tensor(5),
        "bn2.num_batches_tracked": torch.tensor(7),
    }
    summary = summarise(state)
    expected = {"w": 2.0, "half": 240000.0, "bfloat": 8.0, "tiny": 2**0.5, "large": 4e30, "complex": 5 * 8**0.5}
    assert summary.norms == pytest.approx(expected | {"parameter": 3.0, "strided": 32**0.5}, rel=1e-6)
    assert summary.batches == 7
    assert summarise({}) == Summary({}, None)


def test_a_large_tensor_is_added_up_within_rounding():
    tensor = torch.full((200_000,), 1e-3)
    tensor[0] = 1e4
    assert summarise({"w": tensor}).norms["w"] == pytest.approx(math.sqrt(1e8 + 199_999e-6), rel=1e-5)


def test_a_name_of_any_length_gives_a_text_of_bounded_length():
    name = "n\n" * 10**5
    members = [Summary({name: value}, None) for value in (1.0, 1.0, 30.0)]
    (found,) = find_outliers(members, LABELS)
    assert len(found.text) < 600
    assert "\n" not in found.text
