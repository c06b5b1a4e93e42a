"""What a lab may be asked to be, what it delivers, and what its nodes may see; no node is started."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from wire_lab import spec_of

from orchestrator.lab.control import lab_down, lab_status
from orchestrator.lab.delivery import FactoryRow, deliver, factory_password, take_back
from orchestrator.lab.errors import LabError
from orchestrator.lab.image import Image, digest_of, has_image, lay_image
from orchestrator.lab.machine_nouns import FirmwarePart
from orchestrator.lab.namespaces import Share
from orchestrator.lab.plan import FirmwareImage, LabSpec, NodePaths, PlantedFault
from orchestrator.lab.runtime import hidden_directories, runtime_shares

PROJECT = Path(__file__).parents[2]


def test_a_spec_survives_the_control_socket() -> None:
    spec = spec_of("a", "b")
    node = replace(
        spec.nodes[0],
        firmware=(FirmwarePart("NIC1", "NIC", "28.36", updateable=False),),
        planted=(PlantedFault("gpu_lost", (("gpu", 1),)),),
    )
    spec = replace(spec, nodes=(node, spec.nodes[1]), firmware_images=(FirmwareImage("nic.json", "NIC1", "28.39"),))
    assert LabSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_every_clash_of_a_spec_is_named_at_once() -> None:
    spec = spec_of("a", "b")
    bad = replace(spec.nodes[1], name="a", bmc_address=spec.nodes[0].bmc_address, ssh_address="192.0.2.1")
    with pytest.raises(LabError) as caught:
        replace(spec, nodes=(spec.nodes[0], bad), image_service_address="nowhere").check()
    said = str(caught.value)
    assert "node name a appears 2 times" in said
    assert "address 127.2.210.1:8443 appears 2 times" in said
    assert "a's SSH has the address 192.0.2.1; the lab listens on 127.0.0.0/8 only" in said
    assert "the image service has the address 'nowhere', which is none" in said


def test_papers_are_merged_by_node_and_by_serial(tmp_path: Path) -> None:
    papers = tmp_path / "secrets" / "factory.csv"
    deliver(papers, [FactoryRow("a", "S1", "admin", "one", "aa"), FactoryRow("b", "S2", "admin", "two", "bb")])
    deliver(papers, [FactoryRow("a", "S9", "admin", "new, of course", "cc"), FactoryRow("c", "S2", "admin", "moved", "dd")])
    with papers.open(newline="") as file:
        rows = {row["node"]: (row["serial"], row["password"]) for row in csv.DictReader(file)}
    assert rows == {"a": ("S9", "new, of course"), "c": ("S2", "moved")}
    assert papers.stat().st_mode & 0o777 == 0o600
    take_back(papers, {"S9", "S2"})
    assert not papers.exists()


def test_factory_passwords_are_each_their_own_and_obey_the_usual_rules() -> None:
    words = {factory_password() for _ in range(50)}
    assert len(words) == 50
    assert all(any(c.islower() for c in w) and any(c.isupper() for c in w) and any(c.isdigit() for c in w) for w in words)


def test_the_digest_sees_content_names_modes_and_links(tmp_path: Path) -> None:
    def tree(name: str) -> Path:
        root = tmp_path / name
        (root / "etc").mkdir(parents=True)
        (root / "etc/a").write_text("one")
        (root / "etc/b").symlink_to("a")
        return root

    first, second = tree("first"), tree("second")
    assert digest_of(first) == digest_of(second)
    digests = {digest_of(first)}
    (second / "etc/a").write_text("two")
    digests.add(digest_of(second))
    (second / "etc/a").chmod(0o600)
    digests.add(digest_of(second))
    (second / "etc/b").unlink()
    (second / "etc/b").symlink_to("/etc/a")
    digests.add(digest_of(second))
    (second / "etc/a").rename(second / "etc/c")
    digests.add(digest_of(second))
    assert len(digests) == 5


def test_a_disk_that_is_not_what_was_published_is_no_image(tmp_path: Path) -> None:
    published = tmp_path / "image"
    (published / "etc").mkdir(parents=True)
    (published / "etc/a").write_text("one")
    image = Image(name="img", digest=digest_of(published), directory=published)
    (published / "etc/a").write_text("rotten")
    paths = NodePaths(tmp_path / "node")
    paths.directory.mkdir()
    with pytest.raises(LabError, match=f"the disk holds sha256:.* after the image img {image.digest} was copied"):
        lay_image(image, spec_of("a").nodes[0], paths, "2026-01-01T00:00:00+00:00")
    assert has_image(paths) is False


def test_the_folder_with_the_secrets_is_hidden_wherever_the_project_shows_it(tmp_path: Path) -> None:
    shares = (Share("/srv/shared", "/srv/shared", False), Share(str(tmp_path), "/opt/x"), Share(str(tmp_path / "deep"), "/deep"))
    assert hidden_directories(shares, tmp_path / "deep/.rackray") == ("/opt/x/deep/.rackray", "/deep/.rackray")
    assert hidden_directories(shares, Path("/elsewhere/.rackray")) == ()


def test_an_interpreter_in_usr_local_is_shown_under_every_name_the_environment_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to("python3")
    (tmp_path / "bin/python3").symlink_to("/usr/local/bin/python3")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", "/usr/local")
    targets = {share.target for share in runtime_shares(tmp_path / "shared")}
    assert {"/usr/local/bin/python3", f"/usr/local/lib/python{sys.version_info[0]}.{sys.version_info[1]}"} <= targets
    assert "/usr/local" not in targets


def test_outside_a_virtual_environment_the_lab_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    with pytest.raises(LabError, match="its nodes need a virtual environment"):
        runtime_shares(tmp_path)


def test_where_no_lab_runs_asking_says_so_and_ending_is_no_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no lab daemon answers"):
        lab_status(tmp_path)
    assert lab_down(tmp_path / "never").was_running is False
    assert not (tmp_path / "never").exists()


def test_the_nodes_of_a_second_checkout_run_its_code_though_the_environment_installed_another(tmp_path: Path) -> None:
    for package in ("orchestrator", "model"):
        shutil.copytree(PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "bench"))
    program = (
        "import json; from pathlib import Path; from orchestrator.lab.runtime import runtime_shares;"
        "print(json.dumps({share.target: share.source for share in runtime_shares(Path('/shared'))}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    shown = json.loads(done.stdout)
    # Where an interpreter of this environment finds them by itself, as the nodes' do.
    ask = "import orchestrator, model; print(*orchestrator.__path__, *model.__path__)"
    alone = subprocess.run([sys.executable, "-I", "-c", ask], capture_output=True, text=True, check=True, timeout=60)
    installed = alone.stdout.split()
    assert [shown.get(place) for place in installed] == [str(tmp_path / "orchestrator"), str(tmp_path / "model")]
