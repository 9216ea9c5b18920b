"""Stage 3, one iteration by a policy gradient instead of DPO; the reference policy pi_0 is always the SFT model.

This is the step. The trainer is `infra/training/rl.py`; the methods differ in `infra/training/advantages.py`.
"""

from __future__ import annotations

from functools import partial

from infra.errors import BadInput
from infra.serving.servers import Servers
from infra.steps.inputs import artifact_parts
from infra.steps.step import Plan, step
from infra.store.manifest import Ref, expect
from infra.store.store import Store
from infra.training.config import PolicyGradient, RlConfig, RlRecipe
from infra.training.hosts import HERE, Hosts
from tasks.rewards.group import NO_SIGNAL
from tasks.training.train import OUTSIDE_KEY, check_table, format_in, policies, train_and_publish


@step(outside_key=OUTSIDE_KEY)
def train_rl(
    plan: Plan,
    store: Store,
    *,
    method: PolicyGradient,
    config: RlRecipe,
    samples: Ref,
    temperature: float,
    policy: Ref,
    reference: Ref,
    servers: Servers,
    hosts: Hosts = HERE,
) -> Ref:
    """Train `policy` on the table `samples`, which it drew at `temperature`, and publish the resulting model.

    Raises:
        infra.processes.torchrun.TrainerError: the trainer failed; the message has its last log lines.
        BadInput: there are no samples, or none with a signal; the reference has another vocabulary; or as
            `train_and_publish`.
    """
    check_table(samples, method)
    counts = expect(store, samples).counts
    if method != "reinforce" and counts.get(NO_SIGNAL) == counts.get("queries", 0) > 0:
        raise BadInput(
            f"{method}: the samples of each query have equal rewards, so that there is nothing to learn from them: use "
            "other queries, more samples, or a higher generate.temperature"
        )
    model, fixed = policies(store, servers, policy, reference)
    make_config = partial(
        RlConfig,
        **config.model_dump(),
        method=method,
        temperature=temperature,
        model=model,
        reference=fixed,
        data=artifact_parts(store, samples, servers.work_dir),
    )
    format = format_in(store, samples, "response")
    return train_and_publish(plan, store, servers, "infra.training.rl", make_config, config, hosts, format)
