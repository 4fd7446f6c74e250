import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martes.data.priorities import FAN, Priorities, Prioritised, SumTree
from martes.errors import ConfigError, DataError
from martes.maths.schedules import Linear

SIZES = st.sampled_from([1, 5, FAN, FAN + 1, FAN**2, FAN**2 + 1, 3000])


@given(SIZES, st.lists(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 10)), max_size=40), max_size=6))
def test_a_leaf_is_found_where_its_share_lies(size, changes):
    tree, slow = SumTree(size), np.zeros(size)
    for change in changes:
        places = [place % size for place, _ in change]
        for place in set(places):
            slow[place] = max(weight for other, (_, weight) in zip(places, change, strict=True) if other == place)
        tree.assign(torch.tensor(places, dtype=torch.int64), torch.tensor([w for _, w in change], dtype=torch.float64))
    assert tree.weights.tolist() == slow.tolist()
    assert float(tree.total) == pytest.approx(slow.sum())
    if slow.sum() == 0:
        return
    target = torch.linspace(0, 1, 101, dtype=torch.float64) * float(tree.total)
    found = tree.found(target)
    assert (tree.weights[found] > 0).all()
    ends = np.cumsum(slow)
    slack = 1e-9 * slow.sum()
    for leaf, goal in zip(found.tolist(), target.tolist(), strict=True):
        assert ends[leaf] - slow[leaf] - slack <= goal <= ends[leaf] + slack


def test_replacing_all_weights_is_assigning_each():
    weights = torch.rand(3000, dtype=torch.float64)
    one, other = SumTree(3000), SumTree(3000)
    one.assign(torch.arange(3000), weights)
    other.replace(weights)
    target = torch.rand(500, dtype=torch.float64) * one.total
    assert one.total == other.total
    assert one.found(target).equal(other.found(target))


def test_rounding_never_draws_what_has_no_weight():
    tree = SumTree(2000)
    tree.assign(torch.arange(0, 2000, 7), torch.full((286,), 0.1, dtype=torch.float64))
    beyond = torch.tensor([float(tree.total), float(tree.total) * (1 + 1e-15)], dtype=torch.float64)
    assert tree.found(beyond).tolist() == [1995, 1995]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_draws_are_in_proportion_to_the_power_of_the_priority(alpha):
    priorities, generator = Priorities(Prioritised(alpha=alpha), 50), torch.Generator().manual_seed(1)
    error = torch.rand(50, dtype=torch.float64) * 5
    priorities.renew(torch.arange(50), torch.arange(50))
    priorities.update(torch.arange(50), error)
    share = (error + 1e-6) ** alpha / ((error + 1e-6) ** alpha).sum()
    rounds, batch = 2000, 32
    draws = torch.cat([priorities.drawn(batch, 0.4, generator)[0] for _ in range(rounds)])
    counts = torch.bincount(draws, minlength=50)
    expected = share * rounds * batch
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 90  # 49 degrees of freedom: above in 3 of 10,000 of independent draws; strata vary less
    wrong = torch.full((50,), 1 / 50) if alpha else error / error.sum()
    assert ((counts - wrong * rounds * batch) ** 2 / (wrong * rounds * batch)).sum() > 1000  # the test can fail


def test_importance_weights_by_hand():
    priorities = Priorities(Prioritised(alpha=1.0, epsilon=1e-12), 2)
    priorities.renew(torch.arange(2), torch.arange(2))
    priorities.update(torch.arange(2), torch.tensor([1.0, 3.0]))
    place, weight = priorities.drawn(4, 0.5, torch.Generator().manual_seed(0))
    assert place.tolist() == [0, 1, 1, 1]  # one draw from each quarter of the sum
    # P = 1/4, 3/4; (N P)^-1/2 = 2^1/2, (2/3)^1/2; over the greatest: 1, 3^-1/2
    assert weight.tolist() == pytest.approx([1, 3**-0.5, 3**-0.5, 3**-0.5])
    assert priorities.drawn(4, 0.0, torch.Generator())[1].tolist() == [1] * 4


def test_with_beta_1_the_weights_make_every_mean_the_uniform_one():
    priorities, generator = Priorities(Prioritised(alpha=0.7), 20), torch.Generator().manual_seed(5)
    value, error = torch.randn(20), torch.rand(20) + 0.1
    priorities.renew(torch.arange(20), torch.arange(20))
    priorities.update(torch.arange(20), error)
    place, weight = priorities.drawn(100_000, 1.0, generator)
    assert float((value[place] * weight).sum() / weight.sum()) == pytest.approx(float(value.mean()), abs=0.01)


def test_what_is_new_has_the_greatest_priority_that_was_seen():
    priorities = Priorities(Prioritised(alpha=1.0), 10)
    priorities.renew(torch.arange(3), torch.arange(2))
    assert priorities.tree.weights.tolist() == [1, 1] + [0] * 8
    priorities.update(torch.tensor([0]), torch.tensor([-7.0]))
    priorities.update(torch.tensor([0]), torch.tensor([0.5]))
    priorities.renew(torch.tensor([1, 2, 3]), torch.tensor([2]))
    assert priorities.tree.weights[:4].tolist() == pytest.approx([0.5, 0, 7, 0], abs=1e-5)


def test_what_cannot_be_drawn_gets_no_priority():
    priorities = Priorities(Prioritised(), 10)
    priorities.renew(torch.arange(10), torch.tensor([4]))
    priorities.update(torch.tensor([3, 4]), torch.tensor([9.0, 9.0]))
    assert priorities.tree.weights.nonzero().tolist() == [[4]]


def test_a_loaded_state_draws_the_same():
    one = Priorities(Prioritised(), 100)
    one.renew(torch.arange(100), torch.arange(100))
    one.update(torch.arange(100), torch.rand(100) * 3)
    other = Priorities(Prioritised(), 100)
    other.load_state_dict(one.state_dict())
    draws = [each.drawn(64, 0.5, torch.Generator().manual_seed(2)) for each in (one, other)]
    assert draws[0][0].equal(draws[1][0])
    assert draws[0][1].equal(draws[1][1])
    for each in (one, other):
        each.renew(torch.arange(5), torch.arange(5))
    assert one.tree.weights.equal(other.tree.weights)


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match=r"alpha is -1.0 and epsilon 1e-06"):
        Prioritised(alpha=-1.0)
    with pytest.raises(ConfigError, match=r"alpha is 0.6 and epsilon 0"):
        Prioritised(epsilon=0)
    priorities = Priorities(Prioritised(beta=Linear(0.4, 1.0, 100)), 10)
    with pytest.raises(DataError, match="nothing has a priority yet"):
        priorities.drawn(1, 0.4, torch.Generator())
    priorities.renew(torch.arange(2), torch.arange(2))
    with pytest.raises(DataError, match="a priority of nan: errors are finite"):
        priorities.update(torch.tensor([0, 1]), torch.tensor([1.0, torch.nan]))
