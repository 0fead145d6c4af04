"""Train a detector: python train.py [CONFIG] [KEY=VALUE ...], or python train.py --resume RUN_DIR.

With several processes: torchrun --nproc-per-node N train.py ...
"""

import logging
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from doors import OptionParser, config_and_overrides, print_line, run_door, seen_from_here, this_python

if TYPE_CHECKING:
    from detector.config import Config
    from detector.training.processes import Processes
    from detector.training.run_log import RunLog

_LET_SPEAK_S = 3.0  # by then the launcher has seen the first process end, and ends the others


def main() -> None:
    parser = OptionParser(
        description="Train a RetinaNet with a ranking loss.",
        epilog="Example: python train.py configs/own.yaml data.root=my_set optimizer.lr=0.0005",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG|KEY=VALUE",
        help="a YAML configuration file (default: configs/demo.yaml), and settings as dotted keys",
    )
    parser.add_argument("--resume", metavar="RUN_DIR", type=Path, help="continue the run in this folder")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything and train for a few steps, without writing a run folder",
    )
    a = parser.parse_intermixed_args()
    from detector.training.run_log import RunLog

    with RunLog() as log:
        train(*config_and_overrides(a.words), a.resume, a.dry_run, log)


def train(
    config_name: str | None, overrides: list[str], resume: Path | None, dry_run: bool, log: "RunLog"
) -> None:
    """Build and run the training that the command line describes."""
    from detector.training.agreement import refuse_different
    from detector.training.processes import join_processes
    from detector.training.run_folder import run_to_resume
    from errors import Bystander, InputError, Stopped

    first = os.environ.get("LOCAL_RANK", "0") == "0"  # of the processes on this machine
    if not first:
        logging.getLogger().setLevel(logging.ERROR)
    try:
        resume = None if resume is None else run_to_resume(resume)
        config, name = _configuration(config_name, overrides, resume)
    except InputError:
        if not first:  # the first process has probably found the same error and reports it
            time.sleep(_LET_SPEAK_S)
        raise
    processes = join_processes(config.train.device)
    if not processes.main:
        logging.getLogger().setLevel(logging.ERROR)  # the main process speaks for all
    try:
        with processes.lost_peers_explained():
            refuse_different(processes, config, resume is not None, dry_run)
            folder = None
            if dry_run:
                _rehearse(config, resume, processes)
            else:
                folder = _run(config, name, resume, processes, log)
    except Stopped:  # in all processes
        processes.leave()
        raise
    except BaseException as error:
        # Not `leave`: NCCL would wait for the others, who may be waiting for this one.
        said = processes.announce_failure(str(error))
        if said and isinstance(error, InputError):
            raise Bystander from error
        raise
    processes.leave()
    if processes.main and folder is not None:
        run = shlex.quote(str(folder))
        program = shlex.quote(seen_from_here(Path(__file__).resolve().with_name("evaluate.py")))
        print(f"evaluate: {shlex.quote(this_python())} {program} {run}\nlook:     tensorboard --logdir {run}")


def _run(
    config: "Config", name: str, resume: Path | None, processes: "Processes", log: "RunLog"
) -> Path | None:
    """Train; returns the run folder."""
    from detector.training.run_folder import run_of_launch
    from detector.training.trainer import Trainer

    if resume is None:
        # torchrun may have restarted after the loss of a process: continue in the folder made before.
        launch = processes.launch
        resume = processes.from_main(lambda: run_of_launch(config.run.dir, name, launch) if launch else None)
    trainer = Trainer(config, name, resume, processes, log)
    trainer.run()
    return trainer.folder


def _rehearse(config: "Config", resume: Path | None, processes: "Processes") -> None:
    from detector.training.rehearsal import rehearse

    for line in rehearse(config, resume, processes):
        if processes.main:
            print_line(line)


def _configuration(
    config_name: str | None, overrides: list[str], resume: Path | None
) -> tuple["Config", str]:
    """The configuration that the command line describes, and the name of the run."""
    from detector.config.file import (
        apply_overrides,
        keys_of,
        load_config,
        parse_config,
        refuse_own_data_as_demo,
    )
    from detector.config.idle import warn_of_idle_settings
    from detector.training.run_folder import resume_config
    from errors import InputError

    if resume is None:
        if config_name is None:
            refuse_own_data_as_demo(overrides)
        path = Path(config_name or Path(__file__).parent / "configs" / "demo.yaml")
        return load_config(path, overrides), path.stem
    if config_name is not None:
        raise InputError("--resume uses the configuration of the run; leave CONFIG out")
    if any(word.startswith("run.dir=") for word in overrides):
        raise InputError("--resume continues in the folder of the run; leave run.dir out")
    values = apply_overrides(resume_config(resume), overrides)
    config = parse_config(values, str(resume), overrides)
    warn_of_idle_settings(config, keys_of(overrides))
    return config, resume.name


if __name__ == "__main__":
    run_door(main)
