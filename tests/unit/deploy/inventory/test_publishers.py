"""Tables of clouds and registries become rules. The excerpts are made after the publishers' own descriptions of their
formats (deploy/inventory/publishers.py names them); addresses are those for documentation."""

import json

import msgspec
import pytest

from deploy.inventory.publishers import PUBLISHERS, read_table
from schemas.inventory import Inventory, check_inventory

AWS = {
    "syncToken": "1700000000",
    "createDate": "2023-11-14-22-13-20",
    "prefixes": [
        {"ip_prefix": "198.51.100.0/24", "region": "eu-west-1", "service": "AMAZON", "network_border_group": "x"},
        {"ip_prefix": "198.51.100.0/24", "region": "eu-west-1", "service": "EC2", "network_border_group": "x"},
        {"ip_prefix": "198.51.100.0/24", "region": "eu-west-1", "service": "S3", "network_border_group": "x"},
        {"ip_prefix": "198.51.100.64/26", "region": "eu-west-1", "service": "EC2_INSTANCE_CONNECT"},
        {"ip_prefix": "203.0.113.0/24", "region": "GLOBAL", "service": "AMAZON"},
        {"ip_prefix": "192.0.2.0/24", "region": "us-east-1", "service": "EC2"},
        {"ip_prefix": "192.0.2.0/24", "region": "us-east-1", "service": "AMAZON"},
    ],
    "ipv6_prefixes": [{"ipv6_prefix": "2001:db8:4000::/36", "region": "eu-west-1", "service": "S3"}],
}
GCP = {
    "syncToken": "1700000000000",
    "creationTime": "2023-11-14T22:13:20.0",
    "prefixes": [
        {"ipv4Prefix": "198.51.100.0/24", "service": "Google Cloud", "scope": "africa-south1"},
        {"ipv6Prefix": "2001:db8:1900::/44", "service": "Google Cloud", "scope": "global"},
    ],
}
GOOGLE = {"syncToken": "1", "prefixes": [{"ipv4Prefix": "203.0.113.0/24"}, {"ipv6Prefix": "2001:db8::/32"}]}
AZURE = {
    "changeNumber": 300,
    "cloud": "Public",
    "values": [
        {
            "name": name,
            "id": name,
            "properties": {
                "changeNumber": 1,
                "region": region,
                "regionId": 0,
                "platform": "Azure",
                "systemService": service,
                "addressPrefixes": prefixes,
                "networkFeatures": ["API", "NSG"],
            },
        }
        for name, region, service, prefixes in (
            ("AzureCloud", "", "", ["198.51.100.0/24", "203.0.113.0/24", "2001:db8::/48"]),
            ("AzureCloud.westeurope", "westeurope", "", ["198.51.100.0/24"]),
            ("Storage", "", "AzureStorage", ["198.51.100.0/24", "192.0.2.0/25"]),
            ("Storage.WestEurope", "westeurope", "AzureStorage", ["198.51.100.0/24"]),
        )
    ],
}
IP2ASN = "\n".join(
    "\t".join(cells)
    for cells in (
        ("192.0.2.0", "192.0.2.127", "0", "None", "Not routed"),
        ("192.0.2.128", "192.0.2.255", "64500", "US", "GOOGLE"),
        ("198.51.100.0", "198.51.100.127", "64500", "US", "GOOGLE"),
        ("198.51.100.128", "198.51.100.255", "64500", "US", "GOOGLE"),
        ("203.0.113.0", "203.0.113.191", "64501", "DE", "EXAMPLE-AS Example & Söhne GmbH, a name that is far too long"),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "64502", "FR", "-"),
    )
)


def names_of(inventory: Inventory) -> dict[str, list[str]]:
    check_inventory(inventory)
    return {rule.name or "": list(rule.cidrs) for rule in inventory.addresses}


def test_aws_names_the_narrowest_service() -> None:
    assert names_of(read_table("aws", json.dumps(AWS).encode())) == {
        "aws/amazon": ["203.0.113.0/24"],
        "aws/ec2": ["192.0.2.0/24"],
        "aws/ec2-instance-connect": ["198.51.100.64/26"],
        "aws/s3": ["198.51.100.0/24", "2001:db8:4000::/36"],
    }


def test_aws_with_regions_and_only_what_is_wanted() -> None:
    found = names_of(read_table("aws", json.dumps(AWS).encode(), with_regions=True, only=("aws/s3*", "aws/amazon*")))
    assert found == {
        "aws/amazon": ["203.0.113.0/24"],
        "aws/s3.eu-west-1": ["198.51.100.0/24", "2001:db8:4000::/36"],
    }


def test_google_has_two_tables() -> None:
    assert names_of(read_table("gcp", json.dumps(GCP).encode())) == {
        "gcp/cloud": ["198.51.100.0/24", "2001:db8:1900::/44"]
    }
    assert names_of(read_table("gcp", json.dumps(GCP).encode(), with_regions=True)) == {
        "gcp/cloud": ["2001:db8:1900::/44"],
        "gcp/cloud.africa-south1": ["198.51.100.0/24"],
    }
    assert names_of(read_table("gcp", json.dumps(GOOGLE).encode())) == {"google": ["203.0.113.0/24", "2001:db8::/32"]}


def test_azure_names_the_narrowest_tag() -> None:
    assert names_of(read_table("azure", json.dumps(AZURE).encode())) == {
        "azure/azurecloud": ["203.0.113.0/24", "2001:db8::/48"],
        "azure/storage": ["192.0.2.0/25", "198.51.100.0/24"],
    }
    assert "azure/storage.westeurope" in names_of(read_table("azure", json.dumps(AZURE).encode(), with_regions=True))


def test_autonomous_systems_are_named_by_number_and_word_and_neighbours_are_joined() -> None:
    assert names_of(read_table("ip2asn", IP2ASN.encode())) == {
        "as/64500-google": ["192.0.2.128/25", "198.51.100.0/24"],
        "as/64501-example-as-example-s-hne-gmbh-a-name-tha": ["203.0.113.0/25", "203.0.113.128/26"],
        "as/64502": ["2001:db8::/32"],
    }


@pytest.mark.parametrize("publisher", sorted(PUBLISHERS))
@pytest.mark.parametrize(
    "data",
    [b"{}", b"[]", b"{", b"a\tb", b'{"prefixes":[{"service":"x"}]}', b'{"values":[{"name":"x"}]}'],
)
def test_another_file_is_refused(publisher: str, data: bytes) -> None:
    with pytest.raises(ValueError):
        read_table(publisher, data)


def test_what_is_read_can_be_written() -> None:
    found = read_table("aws", json.dumps(AWS).encode())
    assert msgspec.json.decode(msgspec.json.encode(found), type=Inventory) == found
