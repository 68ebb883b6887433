"""Reinforce a model on a domain: self-edits on ARC or on passages to be known, GSM8K, or any
reasoning-gym data set.

    uv run scripts/rl_loop.py domain=arc
    uv run scripts/rl_loop.py domain=gym task=chain_sum 'task_config={"max_terms": 2}' num_steps=30
    uv run scripts/rl_loop.py domain=knowledge
    uv run scripts/rl_loop.py domain=gsm8k data_path=path/to/gsm8k log_path=runs/mine dry_run=true

Writes config.yaml, metrics.jsonl, samples.jsonl, checkpoints.jsonl and report.html under
runs/rl_loop/<run_id> (or log_path; the same command with the same log_path goes on where it was).
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from dotenv import load_dotenv

from training.adapter_proof import AdapterProof
from training.connect import has_own_engines
from training.domains.base import CallsModels
from training.domains.checks import check_forms, check_with_model, checked_rewards
from training.domains.own import is_own, told_as_own
from training.domains.registry import make_domain, with_domain_fields
from training.loop import Recorder, connect_for_run, exit_on_interrupt, require_models
from training.models import check_rank, check_sampling_weights, resolve_model
from training.rl.config import Config
from training.rl.plan import plan_table, probe
from training.rl.policy import texts
from training.rl.problems import PromptLimit, choose_both, problems_input
from training.rl.records import Answers, batch_metrics, evaluation_metrics, record, shown
from training.rl.report import make_report, print_tables, write_published
from training.rl.settings import Settings, make_policy, make_trainer
from training.rl.updates import (
    check_loss,
    grpo_update,
    problem_batch,
    rest_em_update,
)
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    exit_on_config_error,
    held_log,
    problems_of,
    raise_problems,
)
from utils.interrupts import uninterrupted
from utils.runs.files import shown_path
from utils.runs.live_report import LiveReport
from utils.runs.progress import Stopwatch, progress
from utils.runs.run_dir import RunDir, new_run_path
from utils.runs.sinks import sink_factories
from utils.terminal import command

logger = logging.getLogger(__name__)


def main(config: Any) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    started = time.perf_counter()

    # everything that can be wrong with the settings, before a model is loaded or a file written
    checks: list[Callable[[], object]] = [
        lambda: check_loss(config.loss_fn, config.loss_fn_config),
        lambda: sink_factories(config.sinks),
    ]
    if has_own_engines(config.backend):
        checks.append(lambda: resolve_model(config.model_name))
        checks.append(lambda: check_sampling_weights(config.model_name, config.sampling_weights))
    raise_problems(list(dict.fromkeys(problems_of(*checks))))
    # of functions, as they are called: what the user's own code raises
    told = told_as_own(config.domain)
    log_path = config.log_path or new_run_path("rl_loop")
    may_change = ("num_steps", "sinks", "dry_run", "save_every", "keep_checkpoints", "num_engines")
    with contextlib.ExitStack() as stack:
        # what only the loaded model tells comes last
        with held_log():
            with as_config_errors():
                service = connect_for_run(
                    log_path,
                    config.backend,
                    base_url=config.base_url,
                    device=config.device,
                    dtype=config.dtype,
                    num_engines=config.num_engines,
                    sampler=config.sampler,
                    sampler_options=config.sampler_options,
                    sampling_weights=config.sampling_weights,
                )
                stack.enter_context(contextlib.closing(service))
                domain = make_domain(config.domain, config, service)
                stack.callback(told(domain.close))
                settings = Settings.of(config, domain)
                if has_own_engines(config.backend) and config.lora_rank is not None:
                    check_rank(config.model_name, "lora_rank", config.lora_rank)
                limit = PromptLimit.of(config, service, domain)
                chosen = choose_both(domain, config.domain, limit, settings.eval_size)
                data = {
                    f"{split} problems": problems_input(domain, config.domain, chosen[split])
                    for split in chosen
                }
            problems = {split: found.problems for split, found in chosen.items()}
            if is_own(config.domain) and config.enforce_schema and has_own_engines(config.backend):
                check_forms(domain, config.domain, [*problems["train"], *problems["test"]])
            if config.dry_run:
                with as_config_errors():
                    check_with_model(domain)
                    # an adapter of its own, thrown away at the end
                    policy = make_policy(config, make_trainer(config, settings, service), domain)
                speeds = probe(policy, problems["train"][0], settings)
                table = told(plan_table)(settings, domain, chosen, policy, speeds)
                print(f"\n{table}\n\nNothing was written.")
                return
            opened = RunDir.open(
                "rl_loop",
                log_path,
                config,
                resume_fields_ignored=may_change,
                data=data,
                sinks=config.sinks,
            )
            run = stack.enter_context(opened)
            stack.enter_context(exit_on_interrupt(run))
            require_models(run, service, {"model_name": config.model_name})
            if isinstance(domain, CallsModels):
                domain.open_calls(run)
            recorder = Recorder(run)
            state = recorder.load()
            told(domain.load_state)(state.domain)
            proof = AdapterProof(service, config.model_name, run.path, with_answers=True)
            with as_config_errors():
                check_with_model(domain)
                trainer = make_trainer(config, settings, service, state.checkpoint)
                policy = make_policy(config, trainer, domain, proof)
        base = None
        if config.kl_coef:
            base = service.create_sampling_client(base_model=config.model_name)
        tokenizer = trainer.get_tokenizer()
        stopwatch = Stopwatch()
        title = f"rl_loop {config.domain}"
        live = LiveReport(
            run.path / "report.html",
            lambda: make_report(domain, problems, run.path, title=title),
            "step",
            lambda: state.step,
            settings.num_steps,
        )

        def save() -> None:
            state.domain = told(domain.state)()
            recorder.save(trainer, state, keep=config.keep_checkpoints)

        def evaluate() -> None:
            with stopwatch("evaluation"):
                groups_P_G = policy.answers(
                    problems["test"],
                    size=settings.eval_group_size,
                    temperature=settings.eval_temperature,
                    key=("eval", state.step),
                )
                rewards_P_G = told(checked_rewards)(domain, problems["test"], texts(groups_P_G))
            answers = Answers(problems["test"], groups_P_G, rewards_P_G)
            with uninterrupted():
                state.evaluated = True
                metrics = evaluation_metrics(answers, stopwatch.pop())
                record(run, "eval", state.step, answers, metrics, tokenizer.decode)
            logger.info("step %d, held out: %s", state.step, shown(metrics))

        def step() -> dict[str, float]:
            """One batch: sample, grade, update, record."""
            problems_P = problem_batch(
                problems["train"], state.step, settings.groups_per_batch, config.seed
            )
            with stopwatch("sampling"):
                groups_P_G = policy.answers(
                    problems_P,
                    size=settings.group_size,
                    temperature=settings.temperature,
                    key=("train", state.step),
                )
            with stopwatch("rewards"):
                rewards_P_G = told(checked_rewards)(domain, problems_P, texts(groups_P_G))
            adam, seed = settings.adam(state.step), (config.seed, state.step)
            with uninterrupted():
                with stopwatch("update"):
                    if settings.algorithm == "grpo":
                        update = grpo_update(
                            trainer, groups_P_G, rewards_P_G, settings.grpo, adam, base=base
                        )
                    else:
                        update = rest_em_update(
                            trainer, groups_P_G, rewards_P_G, settings.rest_em, adam, seed=seed
                        )
                state.step += 1
                state.evaluated = False
                answers = Answers(problems_P, groups_P_G, rewards_P_G)
                metrics = batch_metrics(answers, update, stopwatch.pop())
                record(run, "train", state.step, answers, metrics, tokenizer.decode)
            logger.info("step %d: %s", state.step, shown(metrics))
            return metrics

        try:
            with (
                live,
                progress(settings.num_steps, "rl_loop", "batch", initial=state.step) as bar,
            ):
                while True:
                    last = state.step >= settings.num_steps
                    due = config.eval_every and (last or state.step % config.eval_every == 0)
                    if due and not state.evaluated:
                        evaluate()
                    if last or (config.save_every and state.step % config.save_every == 0):
                        save()
                        due = True
                    if last:
                        break
                    if due:
                        live.refresh()
                    metrics = step()
                    bar.update()
                    bar.add(tokens=int(metrics["tokens/sampled"] + metrics["tokens/trained"]))
        except KeyboardInterrupt:
            save()
            raise
        print_tables(domain, problems, run.path)
        write_published(domain, problems, run.path)
        report = live.finish()
    print(f"\n{time.perf_counter() - started:.0f} s in all. Report: {shown_path(report)}")
    if has_own_engines(config.backend) and state.checkpoint is not None:
        adapter = shown_path(state.checkpoint)
        merge = command("export", checkpoint_path=adapter, output_dir="XXXX")
        print(f"Adapter (PEFT format): {adapter}\nMerge it:  {merge}")


def entrypoint(argv: list[str]) -> None:
    """Joins the loop's settings with those of the domain that `argv` names, and runs main."""
    with exit_on_config_error(argv):
        target = with_domain_fields(Config, argv, default="arc", script="rl_loop")

    def run(config: Any) -> None:
        main(config)

    run.__annotations__["config"] = target
    config_entrypoint(run, argv)


if __name__ == "__main__":
    entrypoint(sys.argv[1:])
