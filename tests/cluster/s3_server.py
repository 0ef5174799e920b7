"""A real S3 server on this machine: Ceph's gateway where Debian's packages are installed, else moto's.

    apt-get install --no-install-recommends ceph-mon ceph-osd ceph-mgr radosgw ceph-common

Ceph is a monitor, one OSD in memory and the gateway: about 15 s, 300 MB.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pyarrow.fs as pafs
from nodes import until

from raykd.store.conditional import client_for
from raykd.store.place import Place

KEYS = {"AWS_ACCESS_KEY_ID": "AKRAYKD", "AWS_SECRET_ACCESS_KEY": "SKRAYKD", "AWS_EC2_METADATA_DISABLED": "true"}
LIMITED, LIMITED_KEYS = "limited", {"AWS_ACCESS_KEY_ID": "AKLIMITED", "AWS_SECRET_ACCESS_KEY": "SKLIMITED"}
# this Ceph, like other older stores, does not know the checksums that newer SDKs send
OLDER_STORE = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
BUCKET = "raykd"
CLIENTS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")  # they read ceph.conf
CEPH = (*CLIENTS, "ceph-authtool", "monmaptool")
CONFIG = """[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon}
keyring = {folder}/keyring
auth_allow_insecure_global_id_reclaim = true
public_network = 127.0.0.0/8
public_addr = 127.0.0.1
run_dir = {folder}
admin_socket = {folder}/$cluster-$name.asok
log_file = {folder}/$name.log
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 0
osd_max_object_name_len = 256
osd_max_object_namespace_len = 64
rgw_frontends = beast endpoint=0.0.0.0:{port}
rgw_thread_pool_size = 16
"""


def missing() -> str | None:
    """Why there can be no server here; None when there can."""
    if not moto_serves() or moto():
        return None
    return "neither Ceph's gateway (apt-get install ceph-mon ceph-osd ceph-mgr radosgw ceph-common) nor moto[server]"


def moto() -> str | None:
    beside = Path(sys.executable).with_name("moto_server")
    return str(beside) if beside.exists() else None


def moto_serves() -> bool:
    """Whether it is moto's server, which looks at no credentials."""
    return not all(map(shutil.which, CEPH))


def environment() -> dict[str, str]:
    """What a client needs: keys, and what an older store asks for."""
    return KEYS | OLDER_STORE


def uri(path: str, address: str, **more: str) -> str:
    """Of something in the bucket, for clients that reach the server at this host and port."""
    return f"s3://{BUCKET}/{path}?" + urlencode(
        {"endpoint_override": address, "scheme": "http", "region": "us-east-1"} | more
    )


def filesystem(address: str) -> pafs.S3FileSystem:
    os.environ.update(environment())
    return pafs.S3FileSystem(
        access_key=KEYS["AWS_ACCESS_KEY_ID"], secret_key=KEYS["AWS_SECRET_ACCESS_KEY"], endpoint_override=address,
        scheme="http", region="us-east-1", allow_bucket_creation=True,
    )  # fmt: skip


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """A server with an empty bucket, listening on all of this machine's addresses; the port it has."""
    with ExitStack() as stack:
        start = moto_server if moto_serves() else ceph
        port = start(folder, stack)
        filesystem(f"127.0.0.1:{port}").create_dir(BUCKET)
        yield port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as attempt:
        attempt.settimeout(1)
        return attempt.connect_ex((host, port)) == 0


def background(stack: ExitStack, command: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    """A process that ends with the stack."""
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ | more, start_new_session=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def moto_server(folder: Path, stack: ExitStack) -> int:
    port, program = free_port(), moto()
    assert program
    background(stack, [program, "-H", "0.0.0.0", "-p", str(port)], folder / "moto.log")
    until(lambda: listens(port), 60, "moto's server")
    return port


def ceph(folder: Path, stack: ExitStack) -> int:
    mon, port, fsid, osd = free_port(), free_port(), str(uuid.uuid4()), str(uuid.uuid4())
    file = folder / "ceph.conf"
    file.write_text(CONFIG.format(fsid=fsid, mon=mon, folder=folder, port=port))
    (folder / "osd").mkdir()

    def run(program: str, *arguments: str) -> str:
        command = [program, "-c", str(file), *arguments] if program in CLIENTS else [program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert not done.returncode, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def serve(program: str, *arguments: str) -> None:
        background(stack, [program, "-c", str(file), "-f", *arguments], folder / f"{program}.out")

    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    (folder / "keyring").touch()
    for name, rights in {"mon.": "mon", "client.admin": "mon osd mgr mds", "osd.0": "mon osd"}.items():
        caps = [word for each in rights.split() for word in ("--cap", each, "allow *")]
        run("ceph-authtool", keyring, "--gen-key", "--name", name, *caps)
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon}]", monmap)
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    serve("ceph-mon", "-i", "a")
    run("ceph", "--connect-timeout", "30", "osd", "new", osd)
    run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    serve("ceph-osd", "-i", "0")
    serve("radosgw", "-n", "client.admin", "--rgw_data", str(folder))
    until(lambda: listens(port), 60, "Ceph's gateway")
    for user, keys in {"t": KEYS, LIMITED: LIMITED_KEYS}.items():
        run("radosgw-admin", "user", "create", f"--uid={user}", f"--display-name={user}",
            f"--access-key={keys['AWS_ACCESS_KEY_ID']}", f"--secret-key={keys['AWS_SECRET_ACCESS_KEY']}")  # fmt: skip
    return port


def keep_from_listing(port: int) -> None:
    """Let the limited user do all in the bucket but list it; only Ceph's server minds."""
    rights = {
        "Effect": "Allow",
        "Principal": {"AWS": [f"arn:aws:iam:::user/{LIMITED}"]},
        "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{BUCKET}/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    client_for(Place.of(uri("", f"127.0.0.1:{port}"))).put_bucket_policy(Bucket=BUCKET, Policy=policy)
