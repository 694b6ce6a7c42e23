"""Runs a study: python scripts/study.py --study configs/studies/camvid.json

Trains every arm of the study with every seed, one run after another, then prints and writes the
table: means, paired differences from the baseline with intervals, and costs. The command can be
stopped at any time and resumes when it is called again. See docs/studies.md.
"""

import argparse
import collections
import pathlib
import re
import shutil
import signal
import subprocess
import sys

from kseg import files
from kseg.analysis.extras import require
from kseg.commands import console
from kseg.commands.study_run import inputs_of
from kseg.errors import Interrupted, UserError
from kseg.json_text import parse_json
from kseg.studies import design, results

_BACKEND = "tensorflow"


def run_study(
    path,
    *,
    output=None,
    arms=None,
    seeds=None,
    baseline=None,
    part=None,
    ray=None,
    train=True,
    keep_runs=False,
    report=print,
):
    """Trains the missing runs of a study and writes its table.

    Args:
        path: the study's JSON file, see `kseg.studies.design.Study`.
        output: folder of the results; None: `studies/<name of the study>`.
        arms: names of arms; None: all.
        seeds: ints; None: those of the study.
        baseline: name of the arm that the table compares the others with; None: that of the study.
        part: `(i, n)`, 1 <= i <= n: this process trains every n-th run, starting with the i-th, and
            writes a separate results file. None: all runs.
        ray: address of a Ray cluster (`"local"` starts one on this machine) over which the runs are
            spread, one GPU each; needs the extra `ray`. None: one run after another, locally.
        train: bool, whether to train. False: only the table of existing results.
        keep_runs: bool, whether to keep the folders of finished runs with their checkpoints.
        report: function called with each line of progress.

    Returns:
        dict with `table`, the Markdown text; `files`, the paths of the written files; `finished`
        and `missing`, lists of `(arm, seed)`.

    Raises:
        UserError: if the study, a config or the data is invalid; or if runs failed, after all other
            runs have finished.
        Interrupted: after SIGINT or SIGTERM, with the state of the current run saved.
    """
    plan = design.load_plan(path)
    chosen = plan.runs(arms, seeds)
    baseline = plan.baseline if baseline is None else baseline
    plan.check_arms([baseline])
    if part is not None:
        chosen = chosen[part[0] - 1 :: part[1]]
    folder = pathlib.Path(output or f"studies/{plan.name}")
    require("scipy", "matplotlib", extra="study", what="The table of a study")
    if ray:
        require("ray", extra="ray", what="--ray")
    files.check_contents(folder)
    sources = {arm: inputs_of(config) for arm, config in plan.experiments.items()}
    class_names = _check_classes(plan, sources)
    settings = {
        arm: design.settings(experiment, sources[arm].fingerprint, sources[arm].checksums)
        for arm, experiment in plan.experiments.items()
    }
    done = _valid_results(folder, plan, settings, report)
    missing = [run for run in chosen if (*run, _BACKEND) not in done]
    failures = []
    if train and missing:
        report(f"{plan.name}: {len(missing)} of {len(chosen)} runs to train, in {folder}")
        arguments = plan, missing, folder, settings, part, keep_runs, report
        failures = _train_on_ray(*arguments, ray) if ray else _train_locally(*arguments)
        done = _valid_results(folder, plan, settings)
    summary = _write_tables(folder, plan, baseline, done, class_names)
    finished = [run for run in chosen if (*run, _BACKEND) in done]
    if failures:
        lines = "; ".join(f"{design.run_name(*run)}: {why}" for run, why in failures)
        raise UserError(f"{len(failures)} of {len(missing)} runs failed: {lines}")
    return {
        **summary,
        "finished": finished,
        "missing": [run for run in chosen if run not in finished],
    }


def _check_classes(plan, sources):
    """Returns the class names, which must be the same for all arms and hold the scored ones."""
    from kseg.studies.statistics import check_scored_classes

    names = sources[plan.baseline].class_names
    for arm, source in sources.items():
        if source.class_names != names:
            raise UserError(
                f"All arms of a study must be scored on the same classes. Arm {arm!r} has data of "
                f"other classes than {plan.baseline!r}"
            )
    check_scored_classes(plan.study.scored_classes, names)
    return names


def _valid_results(folder, plan, settings, report=None):
    """Reads the results that match the current configs and data.

    Args:
        folder, plan, settings: as in `run_study`.
        report: function called with a line for each reason why results do not count, or None.

    Returns:
        dict from `(arm, seed, backend)` to `kseg.studies.results.Result`.

    Raises:
        UserError: if a file of pixel counts is missing.
    """
    known = results.read_settings(folder)
    reasons = {
        (arm, key): design.differing_keys(before, settings[arm], plan.experiments[arm])
        for arm in settings
        for key, before in known.items()
    }
    valid, left_out = {}, collections.Counter()
    for result in results.read(folder):
        arm, key = result["arm"], result["fingerprint"]
        if arm not in settings:
            left_out["of arms that the study does not have"] += 1
        elif key not in known:
            left_out[
                f"whose settings/{key}.json is missing: copy it from where they come from"
            ] += 1
        elif reasons[arm, key]:
            shown = ", ".join(reasons[arm, key][:3]) + ", ..." * (len(reasons[arm, key]) > 3)
            left_out[f"of other settings ({shown})"] += 1
        elif not (folder / result["counts"]).exists():
            raise UserError(
                f"{folder / result['counts']} is missing. Copy it from where the result of "
                f"{design.run_name(arm, result['seed'])} comes from, or remove its line of "
                "results*.jsonl; the run will be repeated"
            )
        else:
            valid[arm, result["seed"], result["backend"]] = result
    for reason, number in left_out.items() if report else ():
        report(f"not counted: {number} {'results' if number > 1 else 'result'} {reason}")
    return valid


def _train_locally(plan, missing, folder, settings, part, keep_runs, report):
    """Trains the runs one after another, each in a separate process.

    Returns:
        list of `((arm, seed), error)`, the runs that failed.

    Raises:
        UserError: if there is no file of initial weights, before the first run.
    """
    from kseg.training.initialization import check_pretrained

    for arm in dict.fromkeys(arm for arm, _ in missing):
        try:
            check_pretrained(plan.experiments[arm].model)
        except UserError as error:
            raise UserError(f"arm {arm!r}: {error}") from None
    failures = []
    for number, (arm, seed) in enumerate(missing, 1):
        report(f"[{number}/{len(missing)}] {arm}, seed {seed}")
        run_folder = folder / "runs" / design.run_name(arm, seed)
        code, error, stopped = _train(plan.experiment(arm, seed), run_folder)
        if code and stopped:
            raise Interrupted(f"stopped in {arm}, seed {seed}; the same command resumes")
        if code:
            failures.append(((arm, seed), error))
            report(f"failed: {error}")
            continue
        line = _collect(plan, folder, arm, seed, settings[arm], part, keep_runs)
        report(f"{arm}, seed {seed}: mean IoU {line['last']['mean_iou']:.4f}")
        if stopped:
            raise Interrupted(f"stopped after {arm}, seed {seed}; the same command resumes")
    return failures


def _train(experiment, run_folder):
    """Trains and scores a run in a separate process.

    SIGINT and SIGTERM are forwarded; the process then saves its state, or ends at once if it was
    scoring the trained network, and exits. A second SIGINT ends it at once.

    Returns:
        `(code, error, stopped)`: the exit code, the last line of stderr, and whether a signal was
        forwarded.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    config = run_folder / "study_config.json"
    files.write_text(config, experiment.to_json())
    log = run_folder / "stderr.txt"
    command = [sys.executable, "-m", "kseg.commands.study_run", str(config), str(run_folder)]
    process, before, signals = None, {}, []

    def forward(number, frame):
        signals.append(number)
        if process is not None:
            process.send_signal(signal.SIGTERM if len(signals) == 1 else number)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, forward)
    try:
        with open(log, "w", encoding="utf-8") as errors:
            # In a new session, so that Ctrl-C reaches the process only once, through this one.
            process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        if signals:  # Received while the process was being started.
            process.send_signal(signal.SIGTERM)
        code = process.wait()
    except BaseException:
        if process is not None:
            process.terminate()
            process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    error = lines[-1].removeprefix("error: ") if lines else f"it ended with exit code {code}"
    if code < 0:
        error = f"it was ended by {signal.Signals(-code).name}"
    return code, error, code == 130 or bool(signals)


def _collect(plan, folder, arm, seed, settings, part, keep_runs):
    """Adds a finished run to the results and deletes files that are no longer needed."""
    from kseg.evaluation.image_counts import ImageCounts

    run_folder = folder / "runs" / design.run_name(arm, seed)
    line = parse_json((run_folder / "result.json").read_text(encoding="utf-8"))
    line = {"study": plan.name, "arm": arm, "seed": seed, **line}
    counts = ImageCounts.load(run_folder / "counts.npz")
    results.append(folder, line, counts, settings, part=part)
    if not keep_runs:
        shutil.rmtree(run_folder, ignore_errors=True)
    return line


def _train_on_ray(plan, missing, folder, settings, part, keep_runs, report, address):
    """Spreads runs over a Ray cluster; a run whose worker is lost is repeated.

    Returns:
        list of `((arm, seed), error)`, the runs that failed.
    """
    import ray

    local = address == "local"
    try:
        ray.init(address=None if local else address, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise UserError(f"There is no Ray cluster at {address!r}: {error}") from None
    try:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        # One process per run, because TensorFlow frees GPU memory only when its process exits.
        options = {"num_gpus": gpus, "num_cpus": 1, "max_retries": 3, "max_calls": 1}
        task = ray.remote(**options)(_train_on_worker)
        pending = {
            task.remote(plan.experiment(arm, seed).to_json()): (arm, seed) for arm, seed in missing
        }
        failures = []
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            arm, seed = pending.pop(ready)
            try:
                error, contents = ray.get(ready)
            except ray.exceptions.RayError as lost:
                error, contents = f"its worker was lost: {lost}".splitlines()[0], {}
            if error is not None:
                failures.append(((arm, seed), error))
                report(f"failed: {arm}, seed {seed}: {error}")
                continue
            run_folder = folder / "runs" / design.run_name(arm, seed)
            run_folder.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                (run_folder / name).write_bytes(content)
            line = _collect(plan, folder, arm, seed, settings[arm], part, keep_runs)
            report(f"{arm}, seed {seed}: mean IoU {line['last']['mean_iou']:.4f}")
        return failures
    finally:
        ray.shutdown()


def _train_on_worker(config):
    """Trains a run in a scratch folder, in a Ray worker process that exits afterwards.

    Args:
        config: str, JSON of the experiment; the worker must find its data at the same path.

    Returns:
        `(error, files)`: a one-line message or None, and a dict from the name of each result file
        to its content.
    """
    import tempfile

    from kseg.commands import study_run

    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        file = folder / "study_config.json"
        file.write_text(config, encoding="utf-8")
        error = study_run.attempt(file, folder)
        if error is not None:
            return error, {}
        return None, {name: (folder / name).read_bytes() for name in ("result.json", "counts.npz")}


def _write_tables(folder, plan, baseline, done, class_names):
    """Writes the tables for each backend with results."""
    from kseg.studies import tables
    from kseg.studies.statistics import summarize

    text, written = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for backend in sorted({backend for _, _, backend in done}):
        present = [r for (_, _, b), r in done.items() if b == backend]
        arms = summarize(
            present,
            list(plan.experiments),
            baseline,
            class_names,
            plan.study.scored_classes,
        )
        commits = sorted({str(r.get("commit"))[:12] for r in present})
        devices = sorted({str(r.get("device")) for r in present})
        note = f"Backend {backend}; {', '.join(devices)}; commit {', '.join(commits)}."
        stem = "" if backend == _BACKEND else f"-{backend}"
        summary = {
            f"table{stem}.md": tables.markdown(
                arms, class_names, title=plan.name, baseline=baseline, note=note
            ),
            f"table{stem}.csv": tables.arms_csv(arms),
            f"classes{stem}.csv": tables.classes_csv(arms, class_names),
        }
        for name, content in summary.items():
            files.write_text(folder / name, content)
            written.append(folder / name)
        written.append(folder / f"scores{stem}.png")
        _draw(written[-1], arms, plan.name, baseline)
        text.append(summary[f"table{stem}.md"])
    return {"table": "\n".join(text), "files": written}


def _draw(path, arms, title, baseline):
    from kseg.analysis.charts import png
    from kseg.studies.tables import chart

    files.write_bytes(path, png(chart(arms, title=title, baseline=baseline)))


def parse_arguments(arguments=None):
    """Parses the command line."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("--study", required=True, help="JSON file, see docs/studies.md")
    parser.add_argument("--output", help="folder of the results; default: studies/<name>")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="these instead of the study's"
    )
    parser.add_argument(
        "--baseline",
        metavar="ARM",
        help="compare the others with this arm, not with the study's baseline",
    )
    parser.add_argument(
        "--part",
        type=_part,
        metavar="I/N",
        help="only every N-th run, from the I-th on: for array jobs of Slurm or Kubernetes",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="spread the runs over the Ray cluster at this address, one GPU each; local: on this "
        "machine; needs kseg[ray]",
    )
    parser.add_argument(
        "--table", action="store_true", help="train nothing: write the table of the results so far"
    )
    parser.add_argument(
        "--keep-runs", action="store_true", help="keep the folders of finished runs"
    )
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs the command and returns its exit code."""
    options = parse_arguments(arguments)
    summary = run_study(
        options.study,
        output=options.output,
        arms=options.arms,
        seeds=options.seeds,
        baseline=options.baseline,
        part=options.part,
        ray=options.ray,
        train=not options.table,
        keep_runs=options.keep_runs,
        report=lambda line: print(line, flush=True),
    )
    print(summary["table"])
    for file in summary["files"]:
        print(f"written: {file}")
    if summary["missing"]:
        print(f"{len(summary['missing'])} runs are missing")
    return 0


def _part(text):
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, is {text}")
    return int(match[1]), int(match[2])
