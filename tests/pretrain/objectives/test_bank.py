import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.objectives.bank import Bank


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9), lengths=st.lists(st.integers(0, 21), min_size=1, max_size=6))
def test_a_bank_holds_the_last_rows_whatever_the_batches(size, lengths):
    bank, everything = Bank(size, 2), []
    for length in lengths:
        new = list(range(len(everything), len(everything) + length))
        everything += new
        numbers = torch.tensor(new, dtype=torch.int64)
        bank.add(numbers[:, None].expand(-1, 2).float(), numbers + 100, numbers + 1000)

    z, label, uid = bank.rows()

    last = everything[-size:]
    assert len(bank) == len(last)
    assert sorted(z[:, 0].int().tolist()) == last
    assert torch.equal(label, z[:, 0].long() + 100)
    assert torch.equal(uid, z[:, 1].long() + 1000)


def test_a_checkpoint_holds_the_ring_and_where_it_writes_next():
    one, two = Bank(5, 1), Bank(5, 1)
    three = torch.arange(3)
    one.add(three[:, None].float(), three, three)
    assert len(two) == 0
    two.load_state_dict(one.state_dict())
    assert len(two) == 3
    for bank in (one, two):
        bank.add(three[:, None].float() + 10, three, three)
    assert all(torch.equal(a, b) for a, b in zip(one.rows(), two.rows(), strict=True))
    assert one.rows()[0][:, 0].tolist() == [12, 1, 2, 10, 11]
