"""Tables of what LLMInferenceService embeds: Gateway API's HTTPRoute, InferencePool, KEDA.

Source: Gateway API v1 (`HTTPRouteSpec` with its CEL rules), the inference extension's InferencePool
(v1alpha2 and v1), KEDA's ScaledObject. Messages and rules are those a cluster prints and runs.
"""

PATTERNS = {
    "namespace": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "subdomain": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    "wildcard": r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    "group": r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    "kind": r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$",
    "header": r"^[A-Za-z0-9!#$%&'*+\-.^_\x60|~]+$",
    "origin": (
        r"(^\*$)|(^(http(s)?):\/\/(((\*\.)?([a-zA-Z0-9\-]+\.)*[a-zA-Z0-9-]+|\*)(:([0-9]{1,5}))?)$)"
    ),
    "duration": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$",
    "url-path": r"^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$",
    "label-value": r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
}


def _no_star(field: str, others: str) -> list[tuple[str, str]]:
    return [
        (
            "!('*' in self && self.size() > 1)",
            f"{field} cannot contain '*' alongside other {others}",
        )
    ]


def _only_with(field: str, type_: str) -> list[tuple[str, str]]:
    return [
        (
            f"!(has(self.{field}) && self.type != '{type_}')",
            f"filter.{field} must be nil if the filter.type is not {type_}",
        ),
        (
            f"!(!has(self.{field}) && self.type == '{type_}')",
            f"filter.{field} must be specified for {type_} filter.type",
        ),
    ]


def _together(tag: str, value: str, field: str) -> list[tuple[str, str]]:
    return [
        (
            f"self.{tag} == '{value}' ? has(self.{field}) : true",
            f"{field} must be specified when {tag} is set to '{value}'",
        ),
        (
            f"has(self.{field}) ? self.{tag} == '{value}' : true",
            f"{tag} must be '{value}' when {field} is set",
        ),
    ]


def _one_prefix(where: str, filters: str, wrap: str = "{}") -> str:
    inner = (
        f"(has({filters}.filters) && {filters}.filters.exists_one(f, has(f.{where}) &&"
        f" has(f.{where}.path) && f.{where}.path.type == 'ReplacePrefixMatch' &&"
        f" has(f.{where}.path.replacePrefixMatch)))"
    )
    return (
        f"{wrap.format(inner)} ? ((size(self.matches) != 1 || !has(self.matches[0].path) ||"
        " self.matches[0].path.type != 'PathPrefix') ? false : true) : true"
    )


_IN_BACKENDS = "(has(self.backendRefs) && self.backendRefs.exists_one(b, {} ))"
_EXACTLY_ONE = "filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified"
_PLAIN = "(self.type in ['Exact','PathPrefix']) ? "
_WHEN_PLAIN = "when type one of ['Exact', 'PathPrefix']"
_REPEATABLE_ONCE = (
    "CORS",
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestRedirect",
    "URLRewrite",
)

RULES = {
    "service-port": [
        (
            "(size(self.group) == 0 && self.kind == 'Service') ? has(self.port) : true",
            "Must have port for Service reference",
        )
    ],
    "cors-headers": _no_star("AllowHeaders", "methods"),
    "cors-methods": _no_star("AllowMethods", "methods"),
    "cors-origins": _no_star("AllowOrigins", "origins"),
    "external-auth": [
        *_together("protocol", "GRPC", "grpc"),
        *_together("protocol", "HTTP", "http"),
    ],
    "mirror": [
        (
            "!(has(self.percent) && has(self.fraction))",
            "Only one of percent or fraction may be specified in HTTPRequestMirrorFilter",
        )
    ],
    "fraction": [
        (
            "self.numerator <= self.denominator",
            "numerator must be less than or equal to denominator",
        )
    ],
    "path-modifier": [
        *_together("type", "ReplaceFullPath", "replaceFullPath"),
        *_together("type", "ReplacePrefixMatch", "replacePrefixMatch"),
    ],
    "filter": [
        *_only_with("cors", "CORS"),
        *_only_with("requestHeaderModifier", "RequestHeaderModifier"),
        *_only_with("responseHeaderModifier", "ResponseHeaderModifier"),
        *_only_with("requestMirror", "RequestMirror"),
        *_only_with("requestRedirect", "RequestRedirect"),
        *_only_with("urlRewrite", "URLRewrite"),
        *_only_with("extensionRef", "ExtensionRef"),
    ],
    "filters": [
        (
            "!(self.exists(f, f.type == 'RequestRedirect') &&"
            " self.exists(f, f.type == 'URLRewrite'))",
            "May specify either httpRouteFilterRequestRedirect or httpRouteFilterRequestRewrite,"
            " but not both",
        ),
        *(
            (f"self.filter(f, f.type == '{t}').size() <= 1", f"{t} filter cannot be repeated")
            for t in _REPEATABLE_ONCE
        ),
    ],
    "path-match": [
        (
            f"{_PLAIN}self.value.startsWith('/') : true",
            f"value must be an absolute path and start with '/' {_WHEN_PLAIN}",
        ),
        *(
            (f"{_PLAIN}!self.value.contains('{t}') : true", f"must not contain '{t}' {_WHEN_PLAIN}")
            for t in ("//", "/./", "/../", "%2f", "%2F", "#")
        ),
        *(
            (
                f"{_PLAIN}!self.value.endsWith('{t}') : true",
                f"must not end with '{t}' {_WHEN_PLAIN}",
            )
            for t in ("/..", "/.")
        ),
        (
            "self.type in ['Exact','PathPrefix'] || self.type == 'RegularExpression'",
            "type must be one of ['Exact', 'PathPrefix', 'RegularExpression']",
        ),
        (
            f'{_PLAIN}self.value.matches(r"""{PATTERNS["url-path"]}""") : true',
            f"must only contain valid characters (matching {PATTERNS['url-path']})"
            " for types ['Exact', 'PathPrefix']",
        ),
    ],
    "rule": [
        (
            "(has(self.backendRefs) && size(self.backendRefs) > 0) ?"
            " (!has(self.filters) || self.filters.all(f, !has(f.requestRedirect))): true",
            "RequestRedirect filter must not be used together with backendRefs",
        ),
        (_one_prefix("requestRedirect", "self"), f"When using RequestRedirect {_EXACTLY_ONE}"),
        (_one_prefix("urlRewrite", "self"), f"When using URLRewrite {_EXACTLY_ONE}"),
        (
            _one_prefix("requestRedirect", "b", _IN_BACKENDS),
            f"Within backendRefs, when using RequestRedirect {_EXACTLY_ONE}",
        ),
        (
            _one_prefix("urlRewrite", "b", _IN_BACKENDS),
            f"Within backendRefs, When using URLRewrite {_EXACTLY_ONE}",
        ),
    ],
    "rules": [
        (
            " + ".join(f"(self.size() > {i} ? self[{i}].matches.size() : 0)" for i in range(16))
            + " <= 128",
            "While 16 rules and 64 matches per rule are allowed, the total number of matches"
            " across all rules in a route must be less than 128",
        )
    ],
    "session": [
        (
            "!has(self.cookieConfig) || !has(self.cookieConfig.lifetimeType) ||"
            " self.cookieConfig.lifetimeType != 'Permanent' || has(self.absoluteTimeout)",
            "AbsoluteTimeout must be specified when cookie lifetimeType is Permanent",
        ),
        (
            "!has(self.cookieConfig) || self.type == 'Cookie'",
            "cookieConfig can only be set with type Cookie",
        ),
    ],
    "timeouts": [
        (
            "!(has(self.request) && has(self.backendRequest) && duration(self.request) !="
            " duration('0s') && duration(self.backendRequest) > duration(self.request))",
            "backendRequest timeout cannot be longer than request timeout",
        )
    ],
    "picker-port": [
        (
            "self.kind != 'Service' || has(self.port)",
            "port is required when kind is 'Service' or unspecified (defaults to 'Service')",
        )
    ],
    "unique-ports": [
        (
            "self.all(p1, self.exists_one(p2, p1.number==p2.number))",
            "port number must be unique",
        )
    ],
    "hpa-name": [
        (
            "!has(self.advanced) || !has(self.advanced.horizontalPodAutoscalerConfig) ||"
            " size(self.advanced.horizontalPodAutoscalerConfig.name) == 0",
            "horizontalPodAutoscalerConfig.name must not be set; the controller manages the HPA"
            " name",
        )
    ],
}

ROUTES = """
Group = string len(..253) pattern(group)
Kind = string len(1..63) pattern(kind)
ObjectName = string len(1..253)
NamespaceName = string len(1..63) pattern(namespace)
SectionName = string len(1..253) pattern(subdomain)
Hostname = string len(1..253) pattern(wildcard)
PreciseHostname = string len(1..253) pattern(subdomain)
HeaderName = string len(1..256) pattern(header)
GatewayDuration = string pattern(duration)
PortNumber = int32 1..65535

LocalGatewayReference
  group! Group
  kind! Kind
  name! ObjectName
GatewayObjectReference
  ...LocalGatewayReference
  namespace NamespaceName
BackendObjectReference cel(service-port)
  group Group =""
  kind Kind ="Service"
  name! ObjectName
  namespace NamespaceName
  port PortNumber
ParentReference
  group Group ="gateway.networking.k8s.io"
  kind Kind ="Gateway"
  name! ObjectName
  namespace NamespaceName
  port PortNumber
  sectionName SectionName

CORSHeader = string len(1..256) pattern(header)
CORSMethod = string enum(GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH|*)
CORSOrigin = string len(1..253) pattern(origin)
HTTPCORSFilter
  allowCredentials bool
  allowHeaders [CORSHeader] items(..64) set cel(cors-headers)
  allowMethods [CORSMethod] items(..9) set cel(cors-methods)
  allowOrigins [CORSOrigin] items(..64) set cel(cors-origins)
  exposeHeaders [CORSHeader] items(..64) set
  maxAge int32 =5 1..
ForwardBodyConfig
  maxSize integer
GRPCAuthConfig
  allowedHeaders [string] items(..64) set
HTTPAuthConfig
  allowedHeaders [string] items(..64) set
  allowedResponseHeaders [string] items(..64) set
  path string len(..1024) pattern(url-path)
HTTPExternalAuthFilter cel(external-auth)
  backendRef! BackendObjectReference
  forwardBody ForwardBodyConfig
  grpc GRPCAuthConfig
  http HTTPAuthConfig
  protocol! string enum(HTTP|GRPC)
RouteHTTPHeader
  name! HeaderName
  value! string len(1..4096)
HTTPHeaderFilter
  add [RouteHTTPHeader] items(..16) map(name)
  remove [string] items(..16) set
  set [RouteHTTPHeader] items(..16) map(name)
Fraction cel(fraction)
  denominator int32 =100 1..
  numerator! int32 0..
HTTPRequestMirrorFilter cel(mirror)
  backendRef! BackendObjectReference
  fraction Fraction
  percent int32 0..100
HTTPPathModifier cel(path-modifier)
  replaceFullPath string len(..1024)
  replacePrefixMatch string len(..1024)
  type! string enum(ReplaceFullPath|ReplacePrefixMatch)
HTTPRequestRedirectFilter
  hostname PreciseHostname
  path HTTPPathModifier
  port PortNumber
  scheme string enum(http|https)
  statusCode integer =302 enum(301|302|303|307|308)
HTTPURLRewriteFilter
  hostname PreciseHostname
  path HTTPPathModifier
HTTPRouteFilter cel(filter)
  cors HTTPCORSFilter
  extensionRef LocalGatewayReference
  externalAuth HTTPExternalAuthFilter
  requestHeaderModifier HTTPHeaderFilter
  requestMirror HTTPRequestMirrorFilter
  requestRedirect HTTPRequestRedirectFilter
  responseHeaderModifier HTTPHeaderFilter
  type! string enum(RequestHeaderModifier|ResponseHeaderModifier|RequestMirror|RequestRedirect|URLRewrite|ExtensionRef|CORS)
  urlRewrite HTTPURLRewriteFilter
HTTPBackendRef
  ...BackendObjectReference
  filters [HTTPRouteFilter] items(..16) atomic cel(filters)
  weight int32 =1 0..1000000
HTTPHeaderMatch
  name! HeaderName
  type string ="Exact" enum(Exact|RegularExpression)
  value! string len(1..4096)
HTTPQueryParamMatch
  ...HTTPHeaderMatch -value
  value! string len(1..1024)
HTTPPathMatch cel(path-match)
  type string ="PathPrefix" enum(Exact|PathPrefix|RegularExpression)
  value string ="/" len(..1024)
HTTPRouteMatch
  headers [HTTPHeaderMatch] items(..16) map(name)
  method string enum(GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH)
  path HTTPPathMatch ={"type":"PathPrefix","value":"/"}
  queryParams [HTTPQueryParamMatch] items(..16) map(name)
RetryStatusCode = integer 400..599
HTTPRouteRetry
  attempts integer
  backoff GatewayDuration
  codes [RetryStatusCode] atomic
CookieConfig
  lifetimeType string ="Session" enum(Permanent|Session)
SessionPersistence cel(session)
  absoluteTimeout GatewayDuration
  cookieConfig CookieConfig
  idleTimeout GatewayDuration
  sessionName string len(..128)
  type string ="Cookie" enum(Cookie|Header)
HTTPRouteTimeouts cel(timeouts)
  backendRequest GatewayDuration
  request GatewayDuration
HTTPRouteRule cel(rule)
  backendRefs [HTTPBackendRef] items(..16) atomic
  filters [HTTPRouteFilter] items(..16) atomic cel(filters)
  matches [HTTPRouteMatch] =[{"path":{"type":"PathPrefix","value":"/"}}] items(..64) atomic
  name SectionName
  retry HTTPRouteRetry
  sessionPersistence SessionPersistence
  timeouts HTTPRouteTimeouts
HTTPRouteSpec
  hostnames [Hostname] items(..16) atomic
  parentRefs [ParentReference] items(..32) atomic
  rules [HTTPRouteRule] =[{"matches":[{"path":{"type":"PathPrefix","value":"/"}}]}] items(1..16) atomic cel(rules)
  useDefaultGateways string enum(All|None)
"""  # noqa: E501 - one field is one line

POOLS = """
LabelValue = string len(0..63) pattern(label-value)
PoolPort
  number! PortNumber
EndpointPickerRef cel(picker-port)
  failureMode string ="FailClose" enum(FailOpen|FailClose)
  group Group ="" len(0..253)
  kind Kind ="Service"
  name! ObjectName
  port PoolPort
PoolSelector
  matchLabels! {LabelValue} props(1..64)
InferencePoolSpec
  appProtocol string ="http" enum(http|kubernetes.io/h2c)
  endpointPickerRef! EndpointPickerRef
  selector! PoolSelector
  targetPorts! [PoolPort] items(1..8) atomic cel(unique-ports)

OldLabelValue = string len(0..63)
ExtensionRef
  failureMode! string enum(FailOpen|FailClose)
  group Group
  kind Kind
  name! ObjectName
  portNumber PortNumber
OldInferencePoolSpec
  extensionRef ExtensionRef
  selector! {OldLabelValue}
  targetPortNumber! int32
"""

KEDA = """
HPAConfig
  behavior HorizontalPodAutoscalerBehavior
  name string
ScalingModifiers
  activationTarget string
  formula string
  metricType string enum(AverageValue|Value)
  target string
KEDAAdvanced
  horizontalPodAutoscalerConfig HPAConfig
  restoreToOriginalReplicaCount bool
  scalingModifiers ScalingModifiers
KEDAFallback
  behavior string ="static" enum(static|currentReplicas|currentReplicasIfHigher|currentReplicasIfLower)
  failureThreshold! int32
  replicas! int32
KEDATriggerAuthentication
  kind string
  name! string
KEDATrigger
  authenticationRef KEDATriggerAuthentication
  metadata! {string}
  metricType string
  name string
  type! string
  useCachedMetrics bool
KEDAScaling cel(hpa-name)
  advanced KEDAAdvanced
  cooldownPeriod int32 0..
  fallback KEDAFallback
  idleReplicaCount int32 0..
  initialCooldownPeriod int32 0..
  pollingInterval int32 1..
KEDADirectScaling
  ...KEDAScaling
  triggers! [KEDATrigger] items(1..) atomic
"""  # noqa: E501 - one field is one line

TABLES = (ROUTES, POOLS, KEDA)
