"""On a broker that knows quantities, an order whose quantity has changed since it was decided: in the journal before it leaves, exits in any case."""

import pytest
from live_world import Plain
from test_live_emergencies import entered, live

from tradebench.live.deliver import fitting
from tradebench.live.types import Fill, JournalError


@pytest.mark.parametrize("to", [0.0, 200.0])
@live
async def test_a_changed_quantity_and_a_journal_that_cannot_be_written(tmp_path, to):
    async with Plain(tmp_path) as w:
        await entered(w)
        kept, journal, a, gate = [], w.journal, w.one(), next(iter(w.agent.gates.values()))

        async def commit(tx, epoch=None, deployment=None):
            raise JournalError("no space")

        async with w.agent.lock:
            o = a.operate("AAA", to, 1)
            a.take(Fill(gate.epoch, "by hand", "x", "", "main", "AAA", -5.0, 100.0))  # 95 are held now
            journal.commit, journal.append = commit, lambda tx, epoch=None: kept.extend(tx.events)
            try:
                ready = await fitting(w.agent, gate, a, [o])
            finally:
                del journal.commit, journal.append
            assert [x.qty for x in ready] == ([-95.0] if to == 0.0 else []), ready
            assert a.orders[o.client_id].order.qty == to - 95.0
            assert [e for e in kept if "adjust" in e], "the new quantity is on its way to the disk, in its order"
            a.blocked(o.client_id, "the test is over")
            a.take(Fill(gate.epoch, "back", "x", "", "main", "AAA", 5.0, 100.0))
