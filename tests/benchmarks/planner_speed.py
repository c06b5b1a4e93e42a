"""How many layouts a second the planner predicts on one core, and how long it searches: part of `make bench-planner`.

Processor seconds of this process, the best of several; numpy works on one thread here. A layout is predicted whole: step time
with its terms, and memory of the fullest rank. The search adds ranking, power and goodput, and replays the best pipelines.
"""

import os

os.environ.update({name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")})

from model.shape import PRESETS
from orchestrator.planning.parallel.cluster import PlanJob, cluster_by_hand
from orchestrator.planning.parallel.memory import memory_of
from orchestrator.planning.parallel.planner import plan
from orchestrator.planning.parallel.search import Limits, cases_of, layouts_of
from orchestrator.planning.parallel.step_time import step_time
from orchestrator.planning.parallel.validation import FITTED
from tests.benchmarks.spec_speed import best_s

ASKED = (("gpt3-175b", 64, 1536, 2048), ("llama-70b", 256, 2048, 8192), ("llama-405b", 2048, 4096, 8192))
"""Model, nodes of eight H100, sequences in a batch, tokens in a sequence."""


def main() -> None:
    """Measure and print."""
    for name, nodes, batch, tokens in ASKED:
        job = PlanJob(shape=PRESETS[name], global_sequences=batch, sequence_tokens=tokens, steps=1000, framework="megatron-core")
        cluster = cluster_by_hand("H100", nodes=nodes)
        layouts = layouts_of(job, cluster, Limits())
        cases = cases_of(layouts, job, cluster)
        predict_s = best_s(lambda: (step_time(cases, FITTED.constants_of(cases)), memory_of(cases, FITTED.memory)), 7)  # noqa: B023
        search_s = best_s(lambda: plan(job, cluster))  # noqa: B023
        print(
            f"{name} on {cluster.gpus:,} GPUs: {len(layouts):,} layouts at {len(layouts) / predict_s:,.0f} a second on one core "
            f"(asked: 50,000), the whole search {search_s:.2f} s (asked: 1 s)"
        )


if __name__ == "__main__":
    main()
