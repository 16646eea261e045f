"""Object storage for the stand-in's external stages: moto's S3 in this process, which verifies signatures and rights.

There are the buckets "files" and "unread". The key AKIATESTBEDWRITER0000 may list, write and delete, AKIATESTBEDKEEPER0000 not delete, AKIATESTBEDBLIND00000 not list, all with the secret "testbed-secret".
Stages are read with AKIATESTBEDREADER0000, as by a storage integration, which may list and read "files" only.
"""

import json
import os
import tempfile

import boto3
from botocore.config import Config
from moto import settings
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from moto.server import ThreadedMotoServer

WRITER, KEEPER, BLIND, READER = (f"AKIATESTBED{who}" for who in ("WRITER0000", "KEEPER0000", "BLIND00000", "READER0000"))
SECRET = "testbed-secret"

endpoint = None


def client():
    # Whatever proxy the environment names is not for this.
    config = Config(proxies={}, s3={"addressing_style": "path"})
    return boto3.client("s3", "us-east-1", endpoint_url=endpoint, aws_access_key_id=READER, aws_secret_access_key=SECRET, config=config)


def place(url):
    """Bucket and name of s3://bucket/name."""
    bucket, _, name = url.removeprefix("s3://").partition("/")
    return bucket, name


def files(url):
    """What begins so: URLs and sizes."""
    bucket, name = place(url)
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=name)
    return [(f"s3://{bucket}/{found['Key']}", found["Size"]) for page in pages for found in page.get("Contents", [])]


def fetch(url):
    """A copy in a file whose name is that of its content; None if there is no such object."""
    bucket, name = place(url)
    try:
        answer = client().get_object(Bucket=bucket, Key=name)
    except client().exceptions.NoSuchKey:
        return None
    whole = os.path.join(tempfile.mkdtemp(), answer["ETag"].strip('"'))
    with open(whole, "wb") as file:
        file.write(answer["Body"].read())
    return whole


def user(key, buckets, actions):
    iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    iam.create_user(region_name="us-east-1", user_name=key)
    made = iam.create_access_key(key)
    made.access_key_id, made.secret_access_key = key, SECRET
    resources = [f"arn:aws:s3:::{bucket}{end}" for bucket in buckets for end in ("", "/*")]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": [f"s3:{action}" for action in actions], "Resource": resources}]}
    iam.put_user_policy(key, "files", json.dumps(policy))


def begin(address, port):
    """Listens. From then on every request must be signed by one of the two."""
    global endpoint
    endpoint = f"http://{address}:{port}"
    ThreadedMotoServer(ip_address=address, port=port, verbose=False).start()
    for bucket in ("files", "unread"):
        client().create_bucket(Bucket=bucket)
    user(WRITER, ["*"], ["PutObject", "AbortMultipartUpload", "DeleteObject", "ListBucket"])
    user(KEEPER, ["*"], ["PutObject", "AbortMultipartUpload", "ListBucket"])
    user(BLIND, ["*"], ["PutObject", "AbortMultipartUpload", "DeleteObject"])
    user(READER, ["files"], ["GetObject", "ListBucket"])
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
