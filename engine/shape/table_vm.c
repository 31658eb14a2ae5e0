// MicroVMs.
#include "table.h"

// AWS's prose allows 16 KB of payload; its service, and its model, 4096.
#define PAYLOAD_MAX 4096

TEXT(MicrovmIdentifier, 1, 256);
TEXT(MicrovmImageArn, 20, 2048,
     .pattern = "arn:[a-z0-9-]+:lambda:[a-z0-9-]*:[a-z0-9]*:microvm-image:.+");
TEXT(RoleArn, 20, 2048,
     .pattern = "arn:aws[a-z\\-]*:iam::[0-9]{12}:role/?"
		"[a-zA-Z_0-9+=,.@\\-_/]+");
TEXT(KmsKeyIdentifier, 1, 2048,
     .pattern = "(arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/"
		"[a-zA-Z0-9:/_-]+|alias/[a-zA-Z0-9:/_-]+|[a-zA-Z0-9-]+)");
TEXT(NetworkConnector, 1, 2048);
LIST(NetworkConnectors, NetworkConnector, 0, 10);
TEXT(Endpoint, 1, 2048);
SHAPE(MicrovmState, SHAPE_ENUM, ANY_LO, ANY_HI,
      .values = WORDS("PENDING", "RUNNING", "SUSPENDING", "SUSPENDED",
		      "TERMINATING", "TERMINATED"),
      .own = WORDS("PARKED"));

// --- logging, idle policy ----------------------------------------------------

EMPTY(LoggingDisabled);
TEXT(LogGroup, 1, 512, .pattern = "[a-zA-Z0-9_\\-/.#]+");
TEXT(LogStream, 1, 512, .pattern = "[^:*]*");
STRUCT(CloudWatchLogging, M(logGroup, LogGroup), M(logStream, LogStream));
UNION(Logging, M(disabled, LoggingDisabled), M(cloudWatch, CloudWatchLogging));

NUMBER(MaxIdleSeconds, 60, ANY_HI);
NUMBER(SuspendedSeconds, 0, ANY_HI);
STRUCT(IdlePolicy, MUST(maxIdleDurationSeconds, MaxIdleSeconds),
       MUST(suspendedDurationSeconds, SuspendedSeconds),
       MUST(autoResumeEnabled, Boolean));

// --- waiting and filters: thaw's own --------------------------------------------

NUMBER(WaitSeconds, 0, 3600);
TEXT(LabelFilter, 1, 512, .pattern = "[^=]+=.*");
LIST(LabelFilters, LabelFilter, 0, 64);
LIST(StateFilters, MicrovmState, 0, 64);

// --- run -------------------------------------------------------------------------

TEXT(RunHookPayload, 0, PAYLOAD_MAX, .bytes = true, .secret = true);
NUMBER(MaximumDuration, 1, 28800);
TEXT(RunClientToken, 1, 128);
TEXT(MicrovmName, 1, 64, .pattern = "[a-zA-Z0-9-_]+");
TEXT(LabelKey, 1, 63, .pattern = "[a-zA-Z0-9-_./]+");
TEXT(LabelValue, ANY_LO, 255);
MAP(Labels, LabelKey, LabelValue, ANY_LO, 64);

STRUCT(RunRequest, M(ingressNetworkConnectors, NetworkConnectors),
       M(egressNetworkConnectors, NetworkConnectors),
       MUST(imageIdentifier, ImageIdentifier), M(imageVersion, Version),
       M(executionRoleArn, RoleArn), M(idlePolicy, IdlePolicy),
       M(kmsKeyIdentifier, KmsKeyIdentifier), M(logging, Logging),
       M(runHookPayload, RunHookPayload),
       M(maximumDurationInSeconds, MaximumDuration),
       M(clientToken, RunClientToken, .flags = SHAPE_IDEMPOTENCY),
       OWN(name, MicrovmName), OWN(labels, Labels), OWN(cold, Boolean),
       OWN(parked, Boolean), OWN_QUERY(wait, MicrovmState),
       OWN_QUERY(timeout, WaitSeconds));

TEXT(StateReason, 1, 2048, .pattern = "[^\\s]+", .prose = true);
STRUCT(Microvm, MUST(microvmId, MicrovmIdentifier), MUST(state, MicrovmState),
       MUST(endpoint, Endpoint), MUST(imageArn, MicrovmImageArn),
       MUST(imageVersion, Version), M(executionRoleArn, RoleArn),
       M(idlePolicy, IdlePolicy), MUST(maximumDurationInSeconds, Integer),
       MUST(startedAt, Timestamp), M(terminatedAt, Timestamp),
       M(stateReason, StateReason), M(kmsKeyIdentifier, KmsKeyIdentifier),
       M(ingressNetworkConnectors, NetworkConnectors),
       M(egressNetworkConnectors, NetworkConnectors), OWN(thaw, Own));

STRUCT(MicrovmItem, MUST(microvmId, MicrovmIdentifier),
       MUST(state, MicrovmState), MUST(imageArn, MicrovmImageArn),
       MUST(imageVersion, Version), MUST(startedAt, Timestamp), OWN(thaw, Own));
LIST(MicrovmItems, MicrovmItem, ANY_LO, ANY_HI);
STRUCT(MicrovmPage, M(nextToken, String), MUST(items, MicrovmItems));

EMPTY(OpResult);

// --- tokens ----------------------------------------------------------------------

NUMBER(PositiveInteger, 1, ANY_HI);
NUMBER(PortNumber, 1, 65535);
STRUCT(PortRange, MUST(startPort, PortNumber), MUST(endPort, PortNumber));
EMPTY(AllPorts);
UNION(PortSpecification, M(port, PortNumber), M(range, PortRange),
      M(allPorts, AllPorts));
LIST(PortSpecifications, PortSpecification, 1, ANY_HI);

TEXT(AuthTokenKey, 1, 256, .pattern = "[^\\s]+");
TEXT(AuthTokenValue, 0, 8000, .secret = true);
MAP(AuthTokenParts, AuthTokenKey, AuthTokenValue, 1, 10);
STRUCT(AuthToken, MUST(authToken, AuthTokenParts));
