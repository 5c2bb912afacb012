"""The frozen settings tree. Declared here, instantiated by entry points alone (deploy/).

Sources, strongest first: environment (``DRIFT_KAFKA__BOOTSTRAP``), the YAML file of ``--config`` or ``DRIFT_CONFIG``,
built-in defaults.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from schemas.detection import DetectionConfig
from schemas.errors import ConfigurationError
from schemas.topics import INTERNAL_AND_PUBLIC

MAX_RETENTION_DAYS = 18_250
"""50 years. ClickHouse's TTL is a DateTime, which ends in 2106: what is to be kept beyond is deleted at once."""


class _Frozen(BaseModel, frozen=True, extra="forbid"):
    pass


class KafkaSettings(_Frozen):
    """How every Kafka client connects: Faust, our producers, the API and the command line."""

    bootstrap: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ssl_ca_file: Path | None = None
    ssl_cert_file: Path | None = None
    ssl_key_file: Path | None = None
    ssl_key_password: SecretStr | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    oauth_token_url: str | None = None
    oauth_client_id: str | None = None
    oauth_client_secret: SecretStr | None = None
    oauth_scope: str | None = None
    client_id: str = "secureguard-drift"
    # aiokafka compresses lz4 at level 9: ten times the CPU of snappy for our columns.
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "snappy"
    session_timeout_ms: int = Field(default=15_000, ge=6_000)
    rebalance_timeout_ms: int = Field(default=30_000, ge=1_000)


class TopicSettings(_Frozen):
    """Names and sizes of our own topics (schemas/topics.py)."""

    names: dict[str, str] = Field(default_factory=dict)
    partitions: int = Field(default=12, ge=1, le=1024)
    replication: int = Field(default=1, ge=1)
    incarnation: str = "1"

    @model_validator(mode="after")
    def _roles_exist(self) -> "TopicSettings":
        roles = {declaration.role for declaration in INTERNAL_AND_PUBLIC}
        unknown = set(self.names) - roles
        if unknown:
            raise ValueError(f"unknown topic roles {sorted(unknown)}; known are {sorted(roles)}")
        return self

    def name(self, role: str) -> str:
        """Return the name of one of our topics by its role."""
        default = {declaration.role: declaration.default_name for declaration in INTERNAL_AND_PUBLIC}
        return self.names.get(role, default[role])


class LaneSettings(_Frozen):
    """A lane: source topics of one kind and delivery lag. Raise ``version`` with every change."""

    name: str = Field(min_length=1, max_length=100)
    version: int = Field(default=1, ge=1)
    window_ms: int = Field(default=60_000, ge=1_000)
    lateness_ms: int = Field(default=30_000, ge=0)
    idle_ms: int = Field(default=10_000, ge=100)
    max_wait_ms: int = Field(default=300_000, ge=0)
    skew_ms: int = Field(default=10_000, ge=0)
    detection: dict[str, int | float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _detection_is_known(self) -> "LaneSettings":
        unknown = set(self.detection) - set(DetectionConfig.__struct_fields__)
        if unknown:
            raise ValueError(f"unknown detection settings {sorted(unknown)}")
        return self


class FlowTopic(_Frozen):
    """A source topic.

    Attributes:
        format: a producer's format with its arguments (``hubble``, ``zeek-conn?time=start``, ...; `drift sources` lists
            them; see docs/sources), ``auto``, or flows of our own: ``canonical`` takes JSON (object, array, NDJSON) and
            Arrow IPC, ``canonical-json`` or ``canonical-arrow`` just one.
        tenant_from: ``fixed:NAME``, ``topic:REGEX`` (first group), ``header:NAME``, ``key`` or ``field``.
        tenants: names the topic may carry; ``*`` is any.
        start: where a partition begins that has no committed offset.
        flood_share: a source partition is paused when more than this share of its records are dead letters; 1 is never.
        flood_span_ms: over this time, by the worker's clock.
        flood_min_records: of so many records at least.
        flood_pause_ms: a paused source partition is tried again after so long.
    """

    topic: str = "flows"
    lane: str = "default"
    format: str = "canonical"
    tenant_from: str = "field"
    tenants: tuple[str, ...] = ("*",)
    start: Literal["earliest", "latest"] = "earliest"
    max_message_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    flood_share: float = Field(default=0.5, gt=0, le=1)
    flood_span_ms: int = Field(default=60_000, ge=1_000)
    flood_min_records: int = Field(default=1_000, ge=1)
    flood_pause_ms: int = Field(default=60_000, ge=1_000)

    @model_validator(mode="after")
    def _tenant_rule_is_known(self) -> "FlowTopic":
        kind, _, argument = self.tenant_from.partition(":")
        if kind not in {"fixed", "topic", "header", "key", "field"} or (
            kind in {"fixed", "topic", "header"} and not argument
        ):
            raise ValueError(
                f"tenant_from {self.tenant_from!r} of topic {self.topic!r}: "
                "use fixed:NAME, topic:REGEX, header:NAME, key or field"
            )
        return self


class ClickHouseSettings(_Frozen):
    """``chdb:///absolute`` or ``chdb://./relative`` embedded, or ``http(s)://user:password@host:port/database``."""

    dsn: SecretStr = SecretStr("chdb://./drift-data/clickhouse")
    database: str = Field(default="drift", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    verify: bool = True
    retention_days: int = Field(default=90, ge=1, le=MAX_RETENTION_DAYS)
    reader_user: str = Field(default="drift_api", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    reader_password: SecretStr | None = Field(default=None, min_length=12)
    """With a password, `drift migrate` makes the user on a server, and the API reads as it."""


class ProviderSettings(_Frozen):
    """An external identity provider whose access tokens the API takes.

    Attributes:
        issuer, audience: compared exactly with the token's.
        jwks_url: where its public keys are; https, or http on loopback. No token ever names another place.
        algorithms: asymmetric ones alone.
        tenant_claim, role_claim: where tenant and role stand in the token; a path with dots reaches into objects.
        roles: the provider's values to ``viewer``, ``operator`` or ``admin``; of several the one that may most.
        typ: kinds of token taken; many providers say ``JWT``, of ID tokens too: then the audience must tell them apart.
        tenants: for which it may speak; ``*`` is any.
    """

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks_url: str = Field(pattern=r"^(https://|http://(127\.0\.0\.1|localhost|\[::1\])[:/])")
    algorithms: tuple[str, ...] = ("RS256",)
    tenant_claim: str = "tenant"
    role_claim: str = "roles"
    roles: dict[str, str] = Field(default={"viewer": "viewer", "operator": "operator", "admin": "admin"})
    typ: tuple[str, ...] = ("at+jwt",)
    tenants: tuple[str, ...] = Field(min_length=1)


class AuthSettings(_Frozen):
    """Who may use the API.

    Attributes:
        admin_tenant: whose first administrator is made at the first start; default: the tenant of `drift run`'s sample.
        signing_key_file: P-256 key in PEM, the same for all API processes; `drift run` makes one in its folder.
        providers: taken beside the API's own log-in.
    """

    admin_tenant: str = Field(default="online-boutique", min_length=1, max_length=256, pattern=r"^[^:\x00-\x1f]+$")
    signing_key_file: Path | None = None
    providers: tuple[ProviderSettings, ...] = ()


class LimitSettings(_Frozen):
    """What one caller may cost. Over it: 429 with Retry-After.

    Attributes:
        storage: ``memory`` counts per process; ``redis://...`` for all processes together (`pip install
            "secureguard-drift[redis]"`), and per process while Redis is away.
        principal_per_minute, tenant_per_minute: requests. logins_per_minute: tries to log in or refresh, and wrong
            credentials, from one address.
        concurrent_per_tenant: requests under way in one process.
        body_bytes: of a request. prediction_bytes: of one to predict, whose manifests it holds. body_timeout_s: until
            it is there. header_timeout_s: until its headers are.
        request_timeout_s: until the answer is through.
        connections: open at once in one process.
        live_per_tenant: clients of live events in one process. stall_timeout_s: a connection whose client takes nothing
            for so long is cut.
    """

    storage: SecretStr = SecretStr("memory")
    principal_per_minute: int = Field(default=600, ge=1)
    tenant_per_minute: int = Field(default=3_000, ge=1)
    logins_per_minute: int = Field(default=30, ge=1)
    concurrent_per_tenant: int = Field(default=32, ge=1)
    body_bytes: int = Field(default=65_536, ge=1_024)
    prediction_bytes: int = Field(default=262_144, ge=1_024)
    body_timeout_s: float = Field(default=10, gt=0)
    header_timeout_s: float = Field(default=10, gt=0)
    request_timeout_s: float = Field(default=60, gt=0)
    connections: int = Field(default=1_000, ge=1)
    live_per_tenant: int = Field(default=250, ge=1)
    stall_timeout_s: float = Field(default=30, gt=0)

    @model_validator(mode="after")
    def _storage_is_known(self) -> "LimitSettings":
        text = self.storage.get_secret_value()
        if text != "memory" and not text.startswith(("redis://", "rediss://")):
            raise ValueError("storage is memory, redis://HOST:PORT or rediss://HOST:PORT")
        return self


class ApiSettings(_Frozen):
    """Where the API listens, and to whom.

    Attributes:
        allowed_hosts: names by which it is asked for, beside loopback and ``host``; others are refused.
        cors_origins: web pages that may call it, as ``https://name``; none by default.
        is_behind_tls: TLS ends in front of it: answers then carry HSTS.
        trusted_proxies: addresses whose X-Forwarded-For is believed; none by default.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    query_timeout_s: int = Field(default=10, ge=1)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    is_behind_tls: bool = False
    trusted_proxies: tuple[str, ...] = ()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _origins_are_named(self) -> "ApiSettings":
        for origin in self.cors_origins:
            if not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin):
                raise ValueError(
                    f"cors_origins {origin!r}: name each as https://HOST[:PORT], without a path; * is not taken"
                )
        return self


class WorkerSettings(_Frozen):
    """One stream worker.

    Attributes:
        metrics_port: where /metrics, /livez and /readyz are; ``None``: nowhere, 0: a free one. metrics_host: loopback
            unless told otherwise: there is no log-in.
        grace_ms: how long SIGTERM lets the worker finish; after it the process ends whatever it waits for.
        hold_above_ms: ingest pauses while the graph side is this far behind; ``None``: half of the retention of
            `tenant-log`.
        lag_every_ms: how often lag is measured. metadata_every_ms: how often topics are looked at: have they grown?
    """

    group: str = "secureguard-drift"
    checkpoint_every_ms: int = Field(default=15_000, ge=100)
    statement_every_ms: int = Field(default=1_000, ge=50)
    max_poll_records: int = Field(default=5_000, ge=1)
    max_fetch_bytes: int = Field(default=4 << 20, ge=1 << 14)
    state_directory: Path | None = None
    metrics_port: int | None = Field(default=None, ge=0, le=65_535)
    metrics_host: str = "127.0.0.1"
    grace_ms: int = Field(default=30_000, ge=1_000)
    hold_above_ms: int | None = Field(default=None, ge=100)
    lag_every_ms: int = Field(default=5_000, ge=100)
    metadata_every_ms: int = Field(default=60_000, ge=500)
    accept_loss: bool = False


class GraphModelSettings(_Frozen):
    """The graph model on the stream (docs/gnn.md).

    Attributes:
        models_dir: holds `TENANT.npz` and `TENANT.LANE.npz` of `drift train`, on each worker; ``None``: closed windows
            are not scored.
    """

    models_dir: Path | None = None


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        env_prefix="DRIFT_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    lanes: tuple[LaneSettings, ...] = (LaneSettings(name="default"),)
    flows: tuple[FlowTopic, ...] = (FlowTopic(),)
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    api: ApiSettings = ApiSettings()
    worker: WorkerSettings = WorkerSettings()
    gnn: GraphModelSettings = GraphModelSettings()

    @model_validator(mode="after")
    def _lanes_exist(self) -> "Settings":
        lanes = {lane.name for lane in self.lanes}
        for flow in self.flows:
            if flow.lane not in lanes:
                raise ValueError(f"topic {flow.topic!r} names lane {flow.lane!r}; declared lanes are {sorted(lanes)}")
        return self


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings: environment over file over defaults; ``overrides`` (command line) win.

    Raises:
        ConfigurationError: the file or a value is wrong; the text is one line that names the setting.
    """
    path = config or (Path(os.environ["DRIFT_CONFIG"]) if os.environ.get("DRIFT_CONFIG") else None)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"cannot read the configuration {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigurationError(f"{path} must hold a mapping such as 'kafka: {{bootstrap: ...}}'")
        values = loaded or {}

    class _FileBelowEnvironment(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (env_settings, init_settings)

    try:
        settings = _FileBelowEnvironment(**values)
        if overrides:
            settings = settings.model_copy(update=overrides)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ConfigurationError(f"setting {where}: {first['msg']}") from error
    return settings
