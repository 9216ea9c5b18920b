"""How solutions are scored while a search runs: by a generative reward model, or by a sequence classifier."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any

from infra.serving.classifier import Classifier
from infra.serving.completions import Completion, Request
from infra.serving.servers import Servers
from infra.serving.stream import streaming
from infra.store.manifest import Ref
from infra.store.models import fetch_model
from infra.store.store import Store
from infra.text.chat import load_tokenizer
from tasks.mutual.judge import TOGETHER, JudgeConfig, answer_tokens, judging, mass, probability, request_about
from tasks.rewards.score import reward_input_ids
from tasks.search.ask import Scorer, Scoring

log = logging.getLogger(__name__)


def generative(
    step: str,
    config: JudgeConfig,
    queries: Mapping[str, str],
    store: Store,
    model: Ref,
    servers: Servers,
    in_flight: int,
) -> Scorer:
    """Scores by a generative reward model: the probability that it answers "right", kept with the `mass` of both
    answers. Starts its servers."""
    tokenizer, pool = load_tokenizer(fetch_model(store, model, servers.work_dir)), servers.judges(model)
    tokens = answer_tokens(tokenizer, config)

    @asynccontextmanager
    async def scoring() -> AsyncIterator[Scoring]:
        async with streaming(pool, max_in_flight=in_flight, together=TOGETHER) as stream:

            async def score(group: str, texts: Mapping[str, str], keep: Callable[[str, dict[str, Any]], None]) -> None:
                def scored(request: Request, found: list[Completion]) -> None:
                    log_probs = found[0].first_log_probs
                    keep(request.request_id, {"reward": probability(log_probs), "mass": mass(log_probs)})

                def refused(request: Request, reason: str) -> None:
                    log.warning("%s: solution %s is not scored: it %s", step, request.request_id, reason)
                    keep(request.request_id, {"quarantined": reason})

                requests = [
                    request_about(tokenizer, config, name, queries[name.partition("/")[0]], text)
                    for name, text in texts.items()
                ]
                await stream.ask(group, requests, judging(tokens), scored, refused)

            yield score

    return scoring()


def discriminative(queries: Mapping[str, str], store: Store, model: Ref, servers: Servers, in_flight: int) -> Scorer:
    """Scores by a sequence classifier: the sigmoid of its logit. A solution that is too long for it has none. Starts
    its server. `in_flight`: its requests at a time, of all problems together."""
    tokenizer = load_tokenizer(fetch_model(store, model, servers.work_dir))
    classifier = Classifier(partial(servers.reward, model))
    limit, free = servers.options("reward").max_model_len, asyncio.Semaphore(in_flight)

    async def score(_group: str, texts: Mapping[str, str], keep: Callable[[str, dict[str, Any]], None]) -> None:
        ids = {name: reward_input_ids(tokenizer, queries[name.partition("/")[0]], text) for name, text in texts.items()}
        fitting = [name for name in texts if len(ids[name]) <= limit]
        read = [ids[name] for name in fitting]
        async with free:
            found = await classifier.logits(read, max_in_flight=1)
        logits = dict(zip(fitting, found, strict=True))
        for name in texts:
            if name in logits:
                keep(name, {"reward": probability((logits[name], 0.0))})  # the sigmoid
            else:
                too_long = f"has {len(ids[name]):,} tokens with its problem, and the reward model reads {limit:,}"
                keep(name, {"quarantined": too_long})

    return nullcontext(score)
