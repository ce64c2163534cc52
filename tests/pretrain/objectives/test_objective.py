import pytest
import torch

from pretrain.objectives.objective import gather, gather_with_gradient, mean_over_ranks
from tests.pretrain.objectives.ranks import gradients, made, two_ranks

CASES = [("look", {"k": 5, "queue": 64}), ("simclr", {}), ("cross_entropy", {"projector": True})]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return two_ranks(CASES, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=[c[0] for c in CASES])
def test_two_ranks_give_the_gradient_of_the_whole_batch(name, parameters, ranks):
    loss, grads = gradients(made(name, parameters), 0, 1)

    found = ranks[name]

    assert found["loss"].item() == pytest.approx(loss, abs=1e-6)
    assert len(grads) == len(found["grads"]) >= 4
    for one, two in zip(grads, found["grads"], strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(two, one, atol=1e-9, rtol=1e-9)


def test_one_process_gathers_itself():
    x = torch.rand(3, 2)
    assert gather(x) is x
    assert gather_with_gradient(x) is x
    assert mean_over_ranks(torch.tensor(2.0), torch.tensor(5)) == 2


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=[c[0] for c in CASES])
def test_the_state_dict_is_all_that_an_objective_remembers(name, parameters):
    one, two = made(name, parameters), made(name, parameters)
    gradients(one, 0, 1, steps=2)
    two.load_state_dict(one.state_dict())
    torch.manual_seed(0)

    assert gradients(one, 0, 1, steps=1)[0] == gradients(two, 0, 1, steps=1)[0]
