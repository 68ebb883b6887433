"""Judge a base model and checkpoints on the same prompts, and compare them.

    uv run scripts/eval.py eval_file=evals/XXXX.eval.yaml 'checkpoint_paths=["runs/sft/XXXX"]'
    uv run scripts/eval.py eval_file=evals/XXXX.eval.yaml judge_kind=rule num_samples=3
    uv run scripts/eval.py responses_file=eval_results/XXXX.eval-results.yaml judge.model=...

Writes eval_results/<run_id>.eval-results.yaml with every answer and judgment; the replies so far,
config.yaml and report.html lie under runs/eval/<run_id>/, or log_path. The same command with that
log_path goes on where the run stopped, and asks again for what failed. Ends with code 1 where more
than max_unscored of the judgments are missing.
"""

import asyncio
import contextlib
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dotenv import load_dotenv

from evaluation.behaviour.answers import Conversation, hold_conversations
from evaluation.behaviour.judge import (
    Judge,
    Judged,
    LLMJudge,
    RuleJudge,
    judge_conversations,
    prompt_hash,
)
from evaluation.behaviour.plan import Config, Plan, count_calls, make_plan, results_problems
from evaluation.behaviour.report import TITLE, make_report
from evaluation.behaviour.results import Summary, headline_numbers, results_to_plain, summarise
from evaluation.behaviour.tables import closing_tables
from evaluation.behaviour.targets import model_records, open_targets
from generation.properties import Property
from training.endpoints import Endpoints
from utils.config.entrypoint import config_entrypoint, dump_yaml, held_log, to_plain
from utils.llm.api import Endpoint
from utils.llm.client import LLMClient, Watcher
from utils.llm.ledger import Ledger
from utils.llm.live_calls import LiveCalls
from utils.llm.roles import describe_roles
from utils.llm.runs import claimed_output, exit_unfinished
from utils.runs.provenance import run_meta
from utils.runs.run_dir import RunDir
from utils.runs.tables import text_table
from utils.terminal import setting

logger = logging.getLogger(__name__)

# what a run may be taken up again with
MAY_CHANGE = ("max_cost_usd", "max_concurrency", "max_unscored")
MAY_CHANGE += tuple(f"{role}.timeout" for role in ("target", "judge", "second_judge"))


class Outcome(NamedTuple):
    """What was said, and what each judge made of it."""

    conversations: list[Conversation]
    judged: list[list[Judged]]
    ledger: Ledger


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    with contextlib.ExitStack() as stack:
        # everything that can be wrong; what only the loaded models tell comes last
        with held_log():
            plan = make_plan(config)
            config = plan.config
            counts = count_calls(config, plan)
            if config.dry_run:
                print(text_table(("", "number"), counts))
                return
            stack.enter_context(
                claimed_output(plan.results, lambda: results_problems(plan.results, plan.log_path))
            )
            opened = RunDir.open("eval", plan.log_path, config, resume_fields_ignored=MAY_CHANGE)
            run = stack.enter_context(opened)
            stack.enter_context(exit_unfinished(run.path))
            endpoints = stack.enter_context(
                Endpoints(
                    device=config.device,
                    dtype=config.dtype,
                    sampler=config.sampler,
                    sampler_options=config.sampler_options,
                    sampling_weights=config.sampling_weights,
                    run_path=run.path,
                )
            )
            describe_roles(*(target.role for target in plan.targets[:1]), *plan.judges)
            roles = {f"{role.name}.model": role for role in plan.judges}
            if plan.targets:
                roles["model_name"] = plan.targets[0].role
            endpoints.require_models(run, roles)
            called = open_targets(plan.targets, endpoints, template=config.template)
            called += [endpoints.endpoint(role) for role in plan.judges]
        models = plan.source.models or model_records(plan.targets, endpoints)
        total = sum(count for what, count in counts if what.endswith(" calls"))
        with LiveCalls(run, TITLE, total) as calls:
            outcome = asyncio.run(
                answer_and_judge(config, plan, called, run.path / "calls.jsonl", calls)
            )
            summary = summarise(
                plan.source.eval_file,
                models,
                outcome.conversations,
                outcome.judged,
                plan.labels,
                seed=config.seed,
            )
            write_results(config, plan, models, outcome, summary)
            run.log_metrics(0, headline_numbers(summary))
            report = calls.finish(
                make_report(run.run_id, plan.source.eval_file, summary, *outcome, str(plan.results))
            )
    print(closing_tables(summary, outcome.ledger))
    print(f"\nResults: {plan.results}\nReport: {report}")
    exit_on_unscored(summary, plan.log_path, config.max_unscored)


async def answer_and_judge(
    config: Config,
    plan: Plan,
    endpoints: Sequence[Endpoint],
    cache_path: Path,
    watcher: Watcher,
) -> Outcome:
    """Replies that are in the cache are not asked for again."""
    properties = plan.source.eval_file.properties
    written_for = {p.id: properties[p.property] for p in plan.source.eval_file.prompts}

    def properties_of(conversation: Conversation) -> list[Property]:
        if config.judge_properties == "own":
            return [written_for[conversation.prompt]]
        return list(properties.values())

    async with LLMClient(
        endpoints,
        cache_path=cache_path,
        max_concurrency=config.max_concurrency,
        max_cost_usd=config.max_cost_usd,
        watcher=watcher,
    ) as client:
        conversations = plan.source.conversations or await hold_conversations(
            client,
            {target.label: target.role.name for target in plan.targets},
            plan.source.eval_file.prompts,
            config.num_samples,
        )
        judges: list[Judge] = [LLMJudge(client, role.name) for role in plan.judges]
        if config.judge_kind == "rule":
            judges.insert(0, RuleJudge("judge"))
        judged = [
            await judge_conversations(
                judge,
                conversations,
                properties_of,
                repeats=1 if index else config.judge_repeats,
                seed=config.seed,
            )
            for index, judge in enumerate(judges)
        ]
        return Outcome(conversations, judged, client.ledger)


def write_results(
    config: Config,
    plan: Plan,
    models: list[dict[str, Any]],
    outcome: Outcome,
    summary: Summary,
) -> None:
    source = config.responses_file or config.eval_file
    assert source is not None
    judging = {
        "kind": config.judge_kind,
        "prompt_hash": prompt_hash(),
        "roles": [
            {
                "name": role.name,
                "model": role.model,
                "base_url": role.base_url,
                "temperature": role.temperature,
                "not_sent": outcome.ledger.not_sent.get(role.name, []),
            }
            for role in plan.judges
        ],
    }
    plain = results_to_plain(
        plan.source.eval_file,
        summary,
        outcome.conversations,
        [record for judged in outcome.judged for record in judged],
        run_id=plan.log_path.resolve().name,
        config=to_plain(config),
        meta={**run_meta(), "ledger_of_this_process": outcome.ledger.to_plain()},
        source={"path": source, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()},
        judging=judging,
        models=models,
    )
    dump_yaml(plan.results, plain)


def exit_on_unscored(summary: Summary, log_path: Path, limit: float) -> None:
    """Ends the program with code 1 where too much is missing to trust the numbers."""
    for row in summary.unscored:
        if row.share > limit:
            print(
                f"Error: {row.n} of {row.of} judgments of {row.judge} are missing "
                f"({row.share:.0%}, max_unscored={limit:g} is allowed), so these numbers are not "
                f"to be relied on. The same command with {setting('log_path', log_path)} asks for "
                "them again.",
                file=sys.stderr,
            )
            sys.exit(1)


if __name__ == "__main__":
    config_entrypoint(main)
