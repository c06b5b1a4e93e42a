"""DMTF's two validators judge the simulated BMC, with updates that run, are done and have failed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bmc_bench import OURS, Bench, BenchBmc, a_bench

SHARED = Path(__file__).resolve().parents[3] / "shared"
CSDL = SHARED / "data" / "redfish" / "csdl" / "bmcweb_dmtf_csdl.tar.gz"


@pytest.fixture
def bmc(tmp_path: Path) -> Iterator[BenchBmc]:
    with a_bench(tmp_path) as bench:
        yield a_bmc_with_a_past(bench)


def a_bmc_with_a_past(bench: Bench) -> BenchBmc:
    """One that was powered on, updated well, updated badly, and is being updated."""
    bmc = bench.add(61, update_s=20.0)
    bmc.on_machine(lambda machine, now_s: machine.reset("On", now_s))
    for image in ("nic", "nothing"):
        bmc.on_machine(lambda machine, now_s, image=image: machine.start_update(f"https://x/firmware/{image}.bin", now_s))
    bench.tick(25)
    bmc.on_machine(lambda machine, now_s: machine.start_update("https://x/firmware/nic.bin", now_s))
    bench.tick(10)
    return bmc


def judge(name: str, *arguments: str, bmc: BenchBmc, directory: Path) -> str:
    """Run a validator against the BMC and answer what it printed."""
    program = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{name} is not installed")
    trust = str(bmc.certificate.certificate_path)
    # The validators use requests, some of whose calls take the trusted certificate from the environment alone.
    environment = {**os.environ, "REQUESTS_CA_BUNDLE": trust}
    command = [program, "-r", bmc.url, "-u", OURS[0], "-p", OURS[1], *(word.replace("TRUST", trust) for word in arguments)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr


def service_validator(bmc: BenchBmc, directory: Path) -> tuple[int, int, int, str]:
    """How many checks passed, warned and failed, and what was said."""
    schemas = directory / "csdl"
    with tarfile.open(CSDL) as bundle:
        bundle.extractall(schemas, filter="data")
    schema_directory = next(schemas.rglob("ComputerSystem_v1.xml")).parent
    flags = ("--logdir", str(directory / "log"), "--skipschema", "--schema_directory", str(schema_directory), "--nooemcheck")
    told = judge("rf_service_validator", *flags, bmc=bmc, directory=directory)
    table = re.search(r"PASS\D+WARN\D+FAIL\D+NOT TESTED\D+(\d+)\D+(\d+)\D+(\d+)", told)
    assert table, told[-2000:]
    passed, warned, failed = map(int, table.groups())
    return passed, warned, failed, told


@pytest.mark.slow
def test_the_protocol_validator_finds_nothing_wrong(bmc: BenchBmc, tmp_path: Path) -> None:
    flags = ("--report-dir", str(tmp_path), "--report-type", "tsv", "--avoid-http-redirect", "--ca-bundle", "TRUST")
    told = judge("rf_protocol_validator", *flags, bmc=bmc, directory=tmp_path)
    found = re.search(r"PASS: (\d+), WARN: (\d+), FAIL: (\d+)", told)
    assert found, told[-2000:]
    passed, warned, failed = map(int, found.groups())
    report = "\n".join(path.read_text() for path in tmp_path.glob("*.tsv"))
    complaints = [line for line in report.splitlines() if "\tFAIL\t" in line or "\tWARN\t" in line]
    assert (warned, failed, complaints) == (0, 0, [])
    assert passed >= 340, "the validator could not test what it tested before"


@pytest.mark.slow
@pytest.mark.skipif(not CSDL.is_file(), reason=f"DMTF's schema bundle is not at {CSDL.name}")
def test_the_service_validator_finds_every_resource_true_to_its_schema(bmc: BenchBmc, tmp_path: Path) -> None:
    passed, warned, failed, told = service_validator(bmc, tmp_path)
    assert failed == 0, told[-4000:]
    assert passed >= 900, "the validator could not test what it tested before"
    # Chassis/1/Power and Chassis/1/Thermal and the two links to them: deprecated by DMTF, and still what fleets read.
    assert warned <= 4, told[-4000:]
    assert "Validating /redfish/v1/TaskService/Tasks/3" in told


@pytest.mark.slow
@pytest.mark.skipif(not CSDL.is_file(), reason=f"DMTF's schema bundle is not at {CSDL.name}")
def test_the_service_validator_finds_nothing_wrong_with_a_switch_that_has_no_computer_system(tmp_path: Path) -> None:
    with a_bench(tmp_path) as bench:
        passed, warned, failed, told = service_validator(bench.add(62, is_equipment=True), tmp_path)
    assert failed == 0 and warned <= 4, told[-4000:]
    assert passed >= 400, "the validator could not test what it tested before"
