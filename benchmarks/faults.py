"""Kill servers and workers at random moments, and look for what is lost: ``python -m benchmarks.faults --json``.

Real servers of the real model, real jobs, SIGKILL. Phases over one database: uploads; jobs on two servers; serving;
then, without kills, a locked database, a full disk (as root), a PostgreSQL that crashes (where there is one).
Results are kept under ``--out``; ``python -m benchmarks.faults_report OUT`` makes table and figure again. The exit
status is 1 if anything was lost, stuck, repeated or unequal.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from benchmarks.faults_jobs import kill_during_jobs
from benchmarks.faults_ledger import Ledger
from benchmarks.faults_postgres import crash_postgres
from benchmarks.faults_report import draw, print_table
from benchmarks.faults_results import RECIPES, reference
from benchmarks.faults_server import Server, served
from benchmarks.faults_serving import kill_while_serving
from benchmarks.faults_store import fill_disk, lock_database
from benchmarks.faults_uploads import kill_during_uploads
from benchmarks.record import command_line, finish
from iro_server.engines.prepare import prepare_model
from iro_server.settings import Settings

SHARES = {"uploads": 0.2, "serving": 0.2}  # of the kills; jobs get the rest


def main() -> None:
    parser = command_line("faults", __doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out = args.out.resolve()  # results name their folder in full
    shutil.rmtree(args.out / "data", ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.out, {"kills": args.kills, "seed": args.seed})
    began = time.monotonic()
    run(ledger, args.out, args.kills, args.seed)
    ledger.options["seconds"] = round(time.monotonic() - began)
    ledger.save()
    summary = ledger.summary()
    draw(summary, args.out / "faults.png")
    finish(args, summary, print_table, [args.seed])
    sys.exit(1 if ledger.faults() else 0)


def run(ledger: Ledger, out: Path, kills: int, seed: int) -> None:
    settings = Settings(
        data_dir=out / "data" / "main",
        model_dir=prepare_model(),
        job_poll=0.2,
        heartbeat=0.5,
        job_restarts=1_000_000,  # deaths are counted from a job's last checkpoint on
    )
    share = {name: round(part * kills) for name, part in SHARES.items()}
    first, second = (Server(settings, out / f"server-{number}.log") for number in (1, 2))
    with served(first):
        references = {recipe: reference(first, recipe) for recipe in RECIPES}
        linear = references["linear"]
        with ledger.phase("uploads") as phase:
            uploads = kill_during_uploads(first, phase, share["uploads"], seed)
        with ledger.phase("jobs") as phase, served(second):
            kill_during_jobs((first, second), phase, kills - sum(share.values()), seed, references)
        with ledger.phase("serving") as phase:
            kill_while_serving(first, phase, share["serving"], seed, references)
        with ledger.phase("locked database") as phase:
            lock_database(first, phase, linear)
        with ledger.phase("everything again") as phase:
            uploads.phase = phase
            uploads.check_all()
    with ledger.phase("full disk") as phase:
        fill_disk(settings, out / "data" / "small", out / "server-full-disk.log", phase, linear)
    with ledger.phase("PostgreSQL crashes") as phase:
        apart = settings.model_copy(update={"data_dir": settings.data_dir.with_name("postgres")})
        crash_postgres(apart, out / "server-postgres.log", phase, linear, seed)


if __name__ == "__main__":
    main()
