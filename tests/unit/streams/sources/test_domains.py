"""Host names outside: one node per registered domain or cloud service, however many names stand before it."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streams.sources.domains import registered


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("example.com", "example.com"),
        ("a.b.example.com", "example.com"),
        ("*.wikipedia.org", "wikipedia.org"),
        ("www.example.co.uk", "example.co.uk"),
        ("shop.example.com.br", "example.com.br"),
        ("a.t.co", "t.co"),
        ("com", "com"),
        ("co.uk", "co.uk"),
        ("4.3.2.1.in-addr.arpa", "in-addr.arpa"),
        ("a1b2c3.cloudfront.net", "aws/cloudfront"),
        ("s3.amazonaws.com", "aws/s3"),
        ("mine.s3.eu-west-1.amazonaws.com", "aws/s3"),
        ("mine.s3-us-west-2.amazonaws.com", "aws/s3"),
        ("mine.s3.dualstack.us-east-1.amazonaws.com", "aws/s3"),
        ("sqs.us-gov-west-1.amazonaws.com", "aws/sqs"),
        ("q.sqs.cn-north-1.amazonaws.com.cn", "aws/sqs"),
        ("ec2-1-2-3-4.compute-1.amazonaws.com", "aws/ec2"),
        ("ec2-1-2-3-4.eu-west-1.compute.amazonaws.com", "aws/ec2"),
        ("db.abc.eu-west-1.rds.amazonaws.com", "aws/rds"),
        ("eu-west-1.amazonaws.com", "amazonaws.com"),
        ("account.blob.core.windows.net", "blob.core.windows.net"),
        ("login.windows.net", "login.windows.net"),
        ("mine.vault.azure.net", "vault.azure.net"),
        ("bucket.storage.googleapis.com", "storage.googleapis.com"),
        ("googleapis.com", "googleapis.com"),
        ("", ""),
        (".", "."),
    ],
)
def test_a_host_is_named_by_its_domain_or_service(host: str, name: str) -> None:
    assert registered(host) == name


_LABELS = st.text("abcdefghij0123456789-", min_size=1, max_size=20)


@pytest.mark.parametrize(
    "domain",
    ["example.com", "example.co.uk", "cloudfront.net", "s3.eu-west-1.amazonaws.com", "blob.core.windows.net"],
)
@given(st.lists(_LABELS, max_size=8))
def test_nothing_in_front_of_a_domain_makes_another_node(domain: str, front: list[str]) -> None:
    assert registered(".".join([*front, domain])) == registered(domain)


@given(st.text(max_size=300))
def test_any_text_has_a_name_no_longer_than_itself_or_a_services(host: str) -> None:
    assert len(registered(host)) <= max(len(host), len("aws/globalaccelerator"))
