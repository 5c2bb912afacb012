"""How formats are spelled in the configuration."""

import pytest

from schemas.errors import ConfigurationError
from streams.sources.aws_vpc import AwsVpc
from streams.sources.registry import FORMATS, format_of_file, source_format, split_spelling


def test_every_format_is_found_by_its_name() -> None:
    for name in FORMATS:
        assert source_format(name).name == name


def test_arguments_in_either_spelling() -> None:
    assert split_spelling("zeek-conn:ts,id.orig_h") == ("zeek-conn", {"fields": "ts,id.orig_h"})
    assert split_spelling("zeek-conn?fields=ts,a=b&time=end") == ("zeek-conn", {"fields": "ts,a=b", "time": "end"})
    assert split_spelling("canonical") == ("canonical", {})
    assert source_format("hubble:eu-1").name == "hubble"
    assert source_format("suricata-eve?time=end").name == "suricata-eve"


@pytest.mark.parametrize(
    ("spelling", "says"),
    [
        ("netflow", "unknown format 'netflow'; known are auto, aws-vpc"),
        ("netflow?a=b", "unknown format 'netflow'"),
        ("hubble?time=end", "format hubble: no argument 'time'; it takes cluster"),
        ("canonical?time=end", "it takes no arguments"),
        ("canonical:x", "takes no arguments"),
        ("hubble?cluster", "write arguments as hubble?key=value"),
        ("hubble?cluster=a&cluster=b", "each once"),
        ("zeek-conn?time=middle", "time must be end or start, not 'middle'"),
        ("suricata-eve?time=", "time must be logged or end or start"),
        ("zeek-conn?fields=ts,proto", "fields must name ts, id.orig_h and id.resp_h"),
        ("aws-vpc?fields=version,srcaddr", "fields must name dstaddr, end"),
        ("aws-vpc?fields=srcaddr,dstaddr,start|dstaddr,srcaddr,start", "the same number of fields"),
    ],
)
def test_a_wrong_spelling_is_named_in_one_line(spelling: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        source_format(spelling)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_files_header_becomes_arguments() -> None:
    zeek = b"#separator \\x09\n#fields\tts\tid.orig_h\tid.resp_h\tproto\n1\t1.1.1.1\t2.2.2.2\ttcp\n"
    assert format_of_file("zeek-conn", zeek) == "zeek-conn?fields=ts,id.orig_h,id.resp_h,proto"
    assert format_of_file("zeek-conn?time=end", zeek) == "zeek-conn?time=end&fields=ts,id.orig_h,id.resp_h,proto"
    assert format_of_file("zeek-conn?fields=ts,id.orig_h,id.resp_h", zeek).endswith("=ts,id.orig_h,id.resp_h")
    aws = b"version srcaddr dstaddr start\n2 1.1.1.1 2.2.2.2 5\n"
    assert format_of_file("aws-vpc", aws) == "aws-vpc?fields=version,srcaddr,dstaddr,start"
    assert format_of_file("aws-vpc", b"2 1 2 3\n") == "aws-vpc"
    assert format_of_file("canonical", b"{}") == "canonical"
    assert format_of_file("auto", b"ARROW1\0\0") == "canonical"
    with pytest.raises(ConfigurationError, match="cannot be told"):
        format_of_file("auto", b"StartTime,Dur,Proto\n2019/04/04,0.1,udp\n")


def test_aws_fields_may_be_written_as_in_its_console() -> None:
    reading = AwsVpc.configured({"fields": "${srcaddr} ${dstaddr} ${start} | srcaddr,dstaddr,start,bytes"})
    decoded = reading.decode([b"10.0.0.1 10.0.0.2 5", b"10.0.0.1 10.0.0.2 5 77", b"10.0.0.1 10.0.0.2"])
    assert decoded.runs[0].columns["bytes_out"].tolist() == [-1, 77]
    assert [bad.message for bad in decoded.rejected] == [2]
