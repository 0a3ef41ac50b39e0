"""`docker-compose.yml` against the Compose specification, and against the rest of the project."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ops.stack import Ports, versions

from perdure.settings import VARIABLE_PREFIX, load

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
# The reference implementation of the specification, from its module registry.
VALIDATOR = "github.com/compose-spec/compose-go/v2/cmd@v2.9.1"
SERVICES = ("recorder", "checkpointer", "memorizer", "projector", "gateway")
DATA = {
    "kafka": "/var/lib/kafka/data",
    "cassandra": "/var/lib/cassandra",
    "weaviate": "/var/lib/weaviate",
    **dict.fromkeys(SERVICES, "/var/lib/perdure"),
}


def _validate(file):
    go = shutil.which("go")
    assert go, "Go is needed to validate the file"
    return subprocess.run(
        [go, "run", VALIDATOR, "--format=json", str(file)],
        capture_output=True,
        text=True,
        cwd=file.parent,
        check=False,
    )


@pytest.fixture(scope="module")
def model():
    """The file as the specification reads it: anchors merged, short forms written out."""
    validated = _validate(FILE)
    assert validated.returncode == 0, validated.stderr
    return json.loads(validated.stdout)


def test_file_is_valid(model):
    """The reference implementation of the Compose specification accepts the file."""
    assert model["name"] == "perdure"
    assert sorted(model["services"]) == sorted(DATA)


def test_what_the_specification_forbids_is_noticed(tmp_path):
    """The check above can fail."""
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(FILE.read_text().replace("healthcheck:", "health_check:", 1))
    assert "health_check" in _validate(wrong).stderr


def test_engines_have_the_pinned_versions(model):
    """Docker and the native stack start the same versions."""
    images = {name: model["services"][name]["image"] for name in versions.IMAGES}
    assert images == versions.IMAGES


@pytest.mark.parametrize("name", DATA)
def test_each_has_a_health_check(model, name):
    """A service that answers nobody is noticed, and never started before what it needs."""
    service = model["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    needed = service.get("depends_on", {})
    assert set(needed) == (set(versions.IMAGES) if name in SERVICES else set())
    assert {how["condition"] for how in needed.values()} <= {"service_healthy"}
    assert all(model["services"][other]["healthcheck"] for other in needed)


@pytest.mark.parametrize(("name", "folder"), DATA.items())
def test_each_keeps_its_data_in_a_volume(model, name, folder):
    """A container that is made anew finds the data of the old one."""
    (volume,) = model["services"][name]["volumes"]
    assert (volume["type"], volume["target"]) == ("volume", folder)
    assert volume["source"] in model["volumes"]


@pytest.mark.parametrize("name", SERVICES)
def test_services_find_the_engines(model, name):
    """Each service is started by its name, with settings that perdure knows."""
    service = model["services"][name]
    assert service["command"] == ["perdure", "serve", name]
    given = {key: str(value) for key, value in service["environment"].items()}
    settings = load(environment=given)
    assert {key.removeprefix(VARIABLE_PREFIX).lower() for key in given} <= set(
        settings.__struct_fields__
    )
    assert settings.kafka == "kafka:9092"
    assert settings.cassandra == "cassandra:9042"
    assert settings.weaviate == "weaviate:8080"
    assert settings.weaviate_grpc == "weaviate:50051"
    assert settings.blobs.startswith(f"file://{DATA[name]}/")
    assert settings.archive.startswith(f"file://{DATA[name]}/")
    assert f":{settings.health_port}/readyz" in service["healthcheck"]["test"][-1]


def test_only_this_machine_reaches_it(model):
    """Every published port is bound to loopback, and is the one the native stack has."""
    published = {
        name: [(port["host_ip"], int(port["published"])) for port in service.get("ports", [])]
        for name, service in model["services"].items()
    }
    ports = Ports()
    assert {name: found for name, found in published.items() if found} == {
        "kafka": [("127.0.0.1", ports.kafka)],
        "cassandra": [("127.0.0.1", ports.cassandra)],
        "weaviate": [("127.0.0.1", ports.weaviate), ("127.0.0.1", ports.weaviate_grpc)],
        "gateway": [("127.0.0.1", load(environment={}).gateway_port)],
    }


def test_image_is_made_of_what_is_there():
    """The Dockerfile copies only files that exist and that the build is given."""
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = " ".join(copied).split()
    given = (ROOT / ".dockerignore").read_text().splitlines()
    assert [name for name in names if not (ROOT / name).exists()] == []
    assert [name for name in names if f"!{name}" not in given] == []
