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
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import chz
from dotenv import load_dotenv

from training.adapter_proof import AdapterProof
from training.domains.base import CallsModels, Split
from training.domains.checks import check_with_model, checked_problems, checked_rewards
from training.domains.own import told_as_own
from training.domains.registry import RL_INPUT, make_domain, with_domain_fields
from training.loop import Recorder, connect_for_run, exit_on_interrupt, require_models
from training.models import check_rank, resolve_model
from training.rl.plan import plan_table, probe
from training.rl.policy import texts
from training.rl.problems import Chosen, PromptLimit, choose_problems, problems_input
from training.rl.report import (
    batch_metrics,
    make_report,
    pass_metrics,
    print_tables,
    record_answers,
    shown,
    write_published,
)
from training.rl.settings import Settings, make_policy, make_trainer
from training.rl.updates import (
    check_loss,
    grpo_update,
    problem_batch,
    rest_em_update,
    reward_metrics,
)
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    exit_on_config_error,
    held_log,
    problems_of,
    raise_problems,
)
from utils.config.help import EVALUATION, MODEL, OUTPUT, SAMPLING, WHAT
from utils.devices import DTYPE_DOC, Dtype
from utils.interrupts import uninterrupted
from utils.runs.files import shown_path
from utils.runs.live_report import LiveReport
from utils.runs.progress import Stopwatch, progress
from utils.runs.run_dir import RunDir, new_run_path
from utils.terminal import command

logger = logging.getLogger(__name__)


@chz.chz(typecheck=True)
class Config:
    domain: str = chz.field(
        default="arc",
        doc="arc, knowledge, gsm8k, gym, or your own, path/to/file.py:Class (docs/own_domain.md): "
        "has settings of its own, and defaults for those that show none",
        metadata=WHAT | RL_INPUT,
    )
    num_steps: int | None = chz.field(default=None, doc="batches; 0: evaluate only")
    seed: int = chz.field(default=0, doc="of adapters, sampling and the order of problems")
    dry_run: bool = chz.field(default=False, doc="print the plan and an estimate of time, and stop")

    model_name: str = chz.field(
        default="embedded", doc="embedded, a folder or a hub id", metadata=MODEL
    )
    backend: Literal["local", "tinker"] = chz.field(default="local", doc="where the model runs")
    base_url: str | None = chz.field(default=None, doc="server of backend=tinker")
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)
    algorithm: Literal["grpo", "rest_em"] | None = chz.field(
        default=None, doc="grpo, or rest_em (imitate the successes); default: the domain's"
    )
    groups_per_batch: int | None = chz.field(default=None, doc="problems per batch")
    learning_rate: float | None = chz.field(default=None, doc="of Adam")
    lr_schedule: Literal["constant", "linear", "cosine"] = chz.field(
        default="constant", doc="over num_steps (grpo) or over one batch's updates (rest_em)"
    )
    lora_rank: int | None = chz.field(default=None, doc="of the policy's adapter")
    lora_alpha: float | None = chz.field(default=None, doc="of the policy's adapter (local only)")
    grad_clip_norm: float = chz.field(default=0.0, doc="global norm; 0: off")
    loss_fn: Literal["importance_sampling", "ppo", "cispo", "dro", "gspo"] = chz.field(
        default="importance_sampling", doc="of grpo"
    )
    loss_fn_config: dict[str, float] = chz.field(
        default_factory=dict, doc="such as loss_fn_config.clip_high_threshold=1.3"
    )
    updates_per_batch: int = chz.field(default=1, doc="more than 1 needs loss_fn=ppo or cispo")
    kl_coef: float = chz.field(default=0.0, doc="penalty on the KL to the base model (grpo)")
    rest_em_epochs: int | None = chz.field(default=None, doc="passes over a batch's successes")
    rest_em_batch_size: int | None = chz.field(default=None, doc="successes per update")
    selection: Literal["solved", "best", "random"] | None = chz.field(
        default=None,
        doc="what rest_em imitates: all successes, each group's best, or by chance (a control)",
    )

    group_size: int | None = chz.field(default=None, doc="answers per problem", metadata=SAMPLING)
    temperature: float | None = chz.field(default=None, doc="of the sampled answers")
    enforce_schema: bool = chz.field(
        default=True, doc="sample only valid JSON where a domain wants JSON (local only)"
    )
    max_resamples: int = chz.field(default=3, doc="new tries for invalid answers without schema")

    eval_every: int = chz.field(
        default=10, doc="batches; also at the start and the end; 0: never", metadata=EVALUATION
    )
    eval_size: int | None = chz.field(default=None, doc="held-out problems")
    eval_group_size: int | None = chz.field(default=None, doc="answers per held-out problem")
    eval_temperature: float | None = chz.field(default=None, doc="0: greedy")

    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )
    save_every: int = chz.field(default=10, doc="batches between checkpoints; 0: only the last")
    keep_checkpoints: int = chz.field(default=2, doc="older ones are deleted; 0: keep all")
    sinks: list[str] = chz.field(default_factory=list, doc="wandb, tensorboard, trackio")

    @chz.validate
    def _check(self) -> None:
        problems = []
        at_least_one = ("groups_per_batch", "group_size", "lora_rank", "rest_em_epochs")
        at_least_one += ("rest_em_batch_size", "updates_per_batch", "eval_size", "eval_group_size")
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name}={value}: at least 1 is needed")
        at_least_zero = ("num_steps", "eval_every", "save_every", "keep_checkpoints", "seed")
        for name in (*at_least_zero, "max_resamples"):
            value = getattr(self, name)
            if value is not None and value < 0:
                problems.append(f"{name}={value}: 0 or more is needed")
        if self.updates_per_batch > 1 and self.loss_fn not in ("ppo", "cispo"):
            problems.append(
                f"updates_per_batch={self.updates_per_batch} needs loss_fn=ppo or cispo"
            )
        if self.backend == "tinker" and self.lora_alpha is not None:
            problems.append("lora_alpha: the tinker backend has a fixed alpha")
        if self.lora_alpha is not None and not 0 < self.lora_alpha < math.inf:
            problems.append(f"lora_alpha={self.lora_alpha}: a number above 0 is needed")
        finite = ("temperature", "eval_temperature", "learning_rate", "grad_clip_norm", "kl_coef")
        for name in finite:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                problems.append(f"{name}={value}: a number from 0 is needed")
        raise_problems(problems)


def main(config: Any) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    started = time.perf_counter()

    # everything that can be wrong with the settings, before a model is loaded or a file written
    checks: list[Callable[[], object]] = [lambda: check_loss(config.loss_fn, config.loss_fn_config)]
    if config.backend == "local":
        checks.append(lambda: resolve_model(config.model_name))
    raise_problems(problems_of(*checks))
    log_path = config.log_path or new_run_path("rl_loop")
    may_change = ("num_steps", "sinks", "dry_run", "save_every", "keep_checkpoints")
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
                )
                stack.enter_context(contextlib.closing(service))
                domain = make_domain(config.domain, config, service)
                stack.enter_context(contextlib.closing(domain))
                settings = Settings.of(config, domain)
                if config.backend == "local" and config.lora_rank is not None:
                    check_rank(config.model_name, "lora_rank", config.lora_rank)
                limit = PromptLimit.of(config, service, domain)
                with told_as_own(config.domain):
                    train = checked_problems(domain, "train")
                    test = checked_problems(domain, "test")
                chosen: dict[Split, Chosen] = {
                    "train": choose_problems(train, "train problems", limit),
                    "test": choose_problems(test, "test problems", limit, settings.eval_size),
                }
                data = {
                    f"{split} problems": problems_input(domain, chosen[split]) for split in chosen
                }
            problems = {split: found.problems for split, found in chosen.items()}
            if config.dry_run:
                with as_config_errors():
                    check_with_model(domain)
                    # an adapter of its own, thrown away at the end
                    policy = make_policy(config, make_trainer(config, settings, service), domain)
                speeds = probe(policy, problems["train"][0], settings)
                table = plan_table(settings, domain, chosen, policy, speeds)
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
            domain.load_state(state.domain)
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
            state.domain = domain.state()
            recorder.save(trainer, state, keep=config.keep_checkpoints)

        def evaluate() -> None:
            with stopwatch("evaluation"):
                groups_P_G = policy.answers(
                    problems["test"],
                    size=settings.eval_group_size,
                    temperature=settings.eval_temperature,
                    key=("eval", state.step),
                )
                rewards_P_G = checked_rewards(domain, problems["test"], texts(groups_P_G))
            metrics = reward_metrics("eval", rewards_P_G) | pass_metrics(rewards_P_G)
            metrics |= {f"time/{phase}": value for phase, value in stopwatch.pop().items()}
            with uninterrupted():
                state.evaluated = True
                record_answers(
                    run,
                    "eval",
                    state.step,
                    problems["test"],
                    groups_P_G,
                    rewards_P_G,
                    tokenizer.decode,
                )
                run.log_metrics(state.step, metrics)
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
                rewards_P_G = checked_rewards(domain, problems_P, texts(groups_P_G))
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
                metrics = batch_metrics(groups_P_G, rewards_P_G, update, stopwatch.pop())
                record_answers(
                    run, "train", state.step, problems_P, groups_P_G, rewards_P_G, tokenizer.decode
                )
                run.log_metrics(state.step, metrics)
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
    if config.backend == "local" and state.checkpoint is not None:
        adapter = shown_path(state.checkpoint)
        merge = command("export", checkpoint_path=adapter, output_dir="XXXX")
        print(f"Adapter (PEFT format): {adapter}\nMerge it:  {merge}")


def entrypoint(argv: list[str]) -> None:
    """Joins the loop's settings with those of the domain that `argv` names, and runs main."""
    with exit_on_config_error(argv):
        target = with_domain_fields(Config, argv, default="arc")

    def run(config: Any) -> None:
        main(config)

    run.__annotations__["config"] = target
    config_entrypoint(run, argv)


if __name__ == "__main__":
    entrypoint(sys.argv[1:])
