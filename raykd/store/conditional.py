"""Writes of one object that take place only if nobody was faster: what makes a lease tight on S3.

pyarrow has no such writes, so they are boto3's, where that is installed (``pip install raykd[s3]``). Google's and other
stores: none yet, and :mod:`raykd.store.lock` says so.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pyarrow.fs as pafs

from raykd.errors import one_line
from raykd.store.filesystems import ATTEMPTS, address_of, s3_options
from raykd.store.options import options_now
from raykd.store.place import Place

REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class Conditional:
    """One object of a bucket; each method costs a request or two.

    Raises:
        OSError: The store refuses, at every attempt; in its own words.
    """

    def __init__(self, place: Place) -> None:
        address, self.client = address_of(place.uri), client_for(place)
        self.bucket, _, self.key = address.path.partition("/")

    def create(self, data: bytes) -> str | None:
        """The name of the version that was written; None when there is an object already."""
        return self._put(data, IfNoneMatch="*")

    def replace(self, data: bytes, version: str) -> str | None:
        """The name of the version that was written; None when the object is another one by now, or gone."""
        return self._put(data, IfMatch=version) or self._put(data, IfMatch=version.strip('"'))  # as older Cephs want it

    def version(self) -> str | None:
        """The name of the version that is there; None when there is none."""
        found = self._ask("head_object", missing=None)
        return None if found is None else str(found["ETag"])

    def _put(self, data: bytes, **condition: str) -> str | None:
        found = self._ask("put_object", Body=data, missing=None, **condition)
        return None if found is None else str(found["ETag"])

    def _ask(self, operation: str, missing: Any, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self.client, operation)(Bucket=self.bucket, Key=self.key, **arguments)
        except ClientError as error:
            if (code := error.response["Error"]["Code"]) in (*REFUSED, "NoSuchKey", "404"):
                return missing
            where = f"key '{self.key}' in bucket '{self.bucket}'"  # in the words of pyarrow, which errors.py reads
            raise OSError(f"{where}: AWS Error {code} during {operation}: {one_line(error)}") from error
        except BotoCoreError as error:
            raise OSError(f"bucket '{self.bucket}': AWS Error {one_line(error)} during {operation}") from error


def conditional(place: Place) -> Conditional | None:
    """The object, for conditional writes; None where there are none. Whether the store heeds them has to be tried."""
    if not isinstance(place.fs, pafs.S3FileSystem) or find_spec("boto3") is None:
        return None
    return Conditional(place)


def client_for(place: Place) -> Any:
    """boto3's client, opened as :func:`raykd.store.filesystems.open_uri` opens the store."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    values = s3_options(address_of(place.uri), options_now())
    endpoint = values.get("endpoint_override")
    return boto3.session.Session(profile_name=values.get("profile")).client(
        "s3",
        endpoint_url=endpoint and f"{values.get('scheme', 'https')}://{endpoint}",
        region_name=values.get("region") or place.fs.region,
        aws_access_key_id=values.get("access_key"),
        aws_secret_access_key=values.get("secret_key"),
        verify=values.get("tls_ca_file_path"),
        config=Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            signature_version=UNSIGNED if values.get("anonymous") else None,
            s3={"addressing_style": "path"} if endpoint else {},
        ),
    )
