"""The metrics event: what is told of a finished request on the channel and the stream of the metrics."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import Struct

from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import Attempts
from llm_routerd.protocol.outcome import Usage
from llm_routerd.protocol.wire import AsGiven, DeploymentName, QueueMs, RequestId, said

PromptTokens = Annotated[int, said("Of all attempts.", minimum=0)]
CompletionTokens = Annotated[int, said("Of all attempts.", minimum=0)]
KnownCost = Annotated[float, said("Of all attempts whose price is known.", minimum=0)]
EstimatedCalls = Annotated[
    int, said("Attempts among them whose tokens, and so whose cost, are an estimate.", minimum=0)
]
UnpricedCalls = Annotated[int, said("Attempts among them that have a price which is not known.", minimum=0)]


class DeploymentUsage(Struct, frozen=True, kw_only=True):
    """Calls, tokens and cost of one deployment."""

    calls: Annotated[int, said("Attempts.", minimum=0)]
    total_tokens: Annotated[int, said("Prompt and completion together.", minimum=0)]
    prompt_tokens: PromptTokens
    completion_tokens: CompletionTokens
    cost_usd: KnownCost
    estimated_calls: EstimatedCalls
    unpriced_calls: UnpricedCalls


class TenantTotals(Struct, frozen=True, kw_only=True):
    """Requests, tokens and cost of one tenant."""

    requests: Annotated[int, said("Finished requests.", minimum=1)]
    prompt_tokens: PromptTokens
    completion_tokens: CompletionTokens
    cost_usd: KnownCost
    estimated_calls: EstimatedCalls
    unpriced_calls: UnpricedCalls


class EarlyStop(Struct, frozen=True, kw_only=True):
    """One attempt."""

    deployment: DeploymentName
    code: Annotated[AttemptCode, said("Why.")]
    after_ms: Annotated[int, said("How long the attempt had taken.", minimum=0)]
    saved_ms: Annotated[
        int | None,
        said(
            "Estimate of what that saved: the average time of this deployment's answers since start, less `after_ms`; "
            "null before its first answer.",
            minimum=0,
        ),
    ]


class ModelCounts(TypedDict):
    """Counters of one model."""

    success: Annotated[int, said("Answers of this model.", minimum=0)]
    fallback: Annotated[
        int,
        said("Its turns that failed and were followed by another deployment's; repeats are one turn.", minimum=0),
    ]
    error: Annotated[int, said("Its turns that failed and were the request's last.", minimum=0)]


class MetricsEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One per finished request, whatever its end, on the channel and the stream `llm_router_metrics`.

    Never a prompt, an answer or a key.
    """

    id: RequestId
    tenant_id: AsGiven
    context: AsGiven
    chain: Annotated[str, said("The chain, or the deployment, that the request named.")]
    type: Annotated[Literal["result", "error", "cancelled"], said("Which final event it was.")]
    code: Annotated[ErrorCode | None, said("Of an `error`; null otherwise.")]
    model_used: Annotated[str, said("The model that answered; `none` when nobody did.", minLength=1)]
    deployment: Annotated[str | None, said("The deployment that answered; null when nobody did.")]
    latency_ms: Annotated[int, said("From pick-up to the final event.", minimum=0)]
    queue_ms: QueueMs
    ttft_ms: Annotated[
        int | None, said("From pick-up to the answer's first token; null where there was none.", minimum=0)
    ]
    attempts: Attempts
    usage: Annotated[Usage | None, said("Of the call that answered; null when nobody did.")]
    cost_usd: Annotated[
        float | None,
        said("Of all attempts; 0 for local ones, null where one has a price that is not known.", minimum=0),
    ]
    cost_estimated: Annotated[
        bool,
        said(
            "Whether a part of `cost_usd` is an estimate: a call was ended early, timed out, or its backend did not "
            "count."
        ),
    ]
    saved_usd: Annotated[
        float,
        said(
            "What the answer's tokens would have cost at the chain's next cloud deployment; 0 where a cloud deployment "
            "answered.",
            minimum=0,
        ),
    ]
    usage_by_deployment: Annotated[
        dict[str, DeploymentUsage], said("By deployment: what its attempts took, rejected ones included.")
    ]
    tenant_totals: Annotated[
        TenantTotals,
        said("Of this request's tenant (of the requests without one, where it has none) since this worker started."),
    ]
    early_stops: Annotated[tuple[EarlyStop, ...], said("Attempts that were ended before their model had finished.")]
    local_only: Annotated[bool, said("As the request asked.")]
    stream: Annotated[bool, said("Whether token events were asked for.")]
    consumer: Annotated[str, said("The worker.")]
    metrics_snapshot: Annotated[dict[str, ModelCounts], said("By model, since this worker started.")]
    timestamp: Annotated[float, said("Unix time in seconds.")]
    turns: Annotated[
        int | None, said("Of a run with tools: calls to a model that stand, that of the answer included.", minimum=0)
    ] = None
    tool_calls: Annotated[int | None, said("Of a run with tools: how many calls of tools were made.", minimum=0)] = None
