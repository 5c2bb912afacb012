"""Host names outside the estate, bounded: the registered domain, or the service of a cloud that runs it. Pure.

What stands in front of a registered domain is made up freely by whoever owns it (per user, per request, per machine),
so it is no node of a graph. The rule is built in: a public suffix list is data that changes by the week, and with it
names in a running graph would; where this rule knows less than the list, a name comes out coarser, never unbounded.
"""

import re

_REGISTRIES = frozenset(
    ("ac", "co", "com", "edu", "gob", "gouv", "gov", "govt", "go", "mil", "ne", "net", "nic", "nom", "or", "org", "sch")
)
"""Labels under which countries register domains: ``example.co.uk``, ``example.com.br``."""

_PROVIDERS = {
    # direct children of these are services or regions of the provider, what stands before them is its customers'
    "azure.com": 1,
    "azure.net": 1,
    "windows.net": 1,
    "core.windows.net": 1,
    "googleapis.com": 1,
    "oraclecloud.com": 1,
    "aliyuncs.com": 1,
}
"""Domains of clouds: how many labels in front of each are kept."""
_OF_AWS = {"cloudfront.net": "aws/cloudfront", "awsglobalaccelerator.com": "aws/globalaccelerator"}
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")
_REGION = re.compile(r"[a-z]{2,4}(?:-[a-z]+)+-\d{1,2}|dualstack", re.ASCII)
_AWS_SERVICE = re.compile(rf"([a-z0-9-]+?)(?:-(?:{_REGION.pattern})|-1)?", re.ASCII)
_AWS_RENAMED = {"compute": "ec2"}
"""As VPC Flow Logs name the service whose hosts these are."""


def registered(host: str) -> str:
    """Return the registered domain of a host name, or the cloud service it belongs to, named as VPC Flow Logs do.

    Takes a name in lower case without the root's dot; a name without a dot is its own.

    >>> registered("a.b.example.com"), registered("www.example.co.uk"), registered("d1.cloudfront.net")
    ('example.com', 'example.co.uk', 'aws/cloudfront')
    >>> registered("mine.s3.eu-west-1.amazonaws.com"), registered("x.blob.core.windows.net")
    ('aws/s3', 'blob.core.windows.net')
    """
    if host.endswith(_AWS_DOMAINS):
        return _service_of_aws(host)
    labels = host.rsplit(".", 5)
    if len(labels) > 5:
        labels = labels[1:]
    size = 3 if len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _REGISTRIES else 2
    domain = ".".join(labels[-size:])
    while domain in _PROVIDERS and size < len(labels):
        size = min(size + _PROVIDERS[domain], len(labels))
        domain = ".".join(labels[-size:])
    return _OF_AWS.get(domain, domain)


def _service_of_aws(host: str) -> str:
    labels = host[: -len(next(filter(host.endswith, _AWS_DOMAINS)))].split(".")
    service = next((label for label in reversed(labels) if not _REGION.fullmatch(label)), "")
    match = _AWS_SERVICE.fullmatch(service)
    name = service if match is None else match[1]
    return f"aws/{_AWS_RENAMED.get(name, name)}" if name else "amazonaws.com"
