// Images, their versions and builds, and the managed ones. thaw's host is x86-64
// and may be AMD's, for which AWS has no word.
#include "table.h"

TEXT(ImageIdentifier, 1, 256);
TEXT(ImageName, 1, 64, .pattern = "[a-zA-Z0-9-_]+");
ENUM(ImageState, "CREATING", "CREATED", "CREATE_FAILED", "UPDATING", "UPDATED",
     "UPDATE_FAILED", "DELETING", "DELETE_FAILED", "DELETED");
ENUM(VersionState, "PENDING", "IN_PROGRESS", "SUCCESSFUL", "FAILED", "DELETING",
     "DELETED", "DELETE_FAILED");
ENUM(VersionStatus, "ACTIVE", "INACTIVE");
ENUM(BuildState, "PENDING", "IN_PROGRESS", "SUCCESSFUL", "FAILED");
ENUM(Architecture, "ARM_64", "X86_64");
SHAPE(Chipset, SHAPE_ENUM, ANY_LO, ANY_HI, .values = WORDS("GRAVITON", "INTEL"),
      .own = WORDS("AMD"));

// --- what an image is made from ------------------------------------------------

UNION(CodeArtifact, M(uri, NonBlankString));
LIST(BuildConnectors, NetworkConnector, 0, 1);
STRUCT(CpuConfiguration, MUST(architecture, Architecture));
LIST(CpuConfigurations, CpuConfiguration, ANY_LO, ANY_HI);
STRUCT(Resources, MUST(minimumMemoryInMiB, Integer));
LIST(ResourcesList, Resources, 0, 1);
ENUM(Capability, "ALL");
LIST(Capabilities, Capability, ANY_LO, ANY_HI);
TEXT(EnvironmentKey, 1, 256, .pattern = "[^\\s]+");
TEXT(EnvironmentValue, 0, 4096, .secret = true);
MAP(Environment, EnvironmentKey, EnvironmentValue, 0, 100);
TEXT(TagKey, 1, 128, .pattern = "([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*)");
TEXT(TagValue, 0, 256, .pattern = "([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*)");
MAP(Tags, TagKey, TagValue, ANY_LO, ANY_HI);
TEXT(ImageClientToken, 1, 128);

ENUM(HookState, "DISABLED", "ENABLED");
NUMBER(HooksPort, 1, 65535);
NUMBER(HookSeconds, 1, 60);
NUMBER(BuildHookSeconds, 1, 3600);
STRUCT(MicrovmHooks, M(run, HookState), M(runTimeoutInSeconds, HookSeconds),
       M(resume, HookState), M(resumeTimeoutInSeconds, HookSeconds),
       M(suspend, HookState), M(suspendTimeoutInSeconds, HookSeconds),
       M(terminate, HookState), M(terminateTimeoutInSeconds, HookSeconds));
STRUCT(ImageHooks, M(ready, HookState),
       M(readyTimeoutInSeconds, BuildHookSeconds), M(validate, HookState),
       M(validateTimeoutInSeconds, BuildHookSeconds));
STRUCT(Hooks, M(port, HooksPort), M(microvmHooks, MicrovmHooks),
       M(microvmImageHooks, ImageHooks));

// Of requests and of what is said about an image and its versions alike.
#define MADE_FROM                                                         \
	MUST(baseImageArn, NonBlankString), M(baseImageVersion, Version), \
	    MUST(buildRoleArn, RoleArn), M(description, String),          \
	    M(kmsKeyIdentifier, KmsKeyIdentifier),                        \
	    MUST(codeArtifact, CodeArtifact), M(logging, Logging),        \
	    M(egressNetworkConnectors, BuildConnectors),                  \
	    M(cpuConfigurations, CpuConfigurations),                      \
	    M(resources, ResourcesList),                                  \
	    M(additionalOsCapabilities, Capabilities), M(hooks, Hooks),   \
	    M(environmentVariables, Environment)

STRUCT(CreateImageRequest, MADE_FROM, MUST(name, ImageName), M(tags, Tags),
       M(clientToken, ImageClientToken, .flags = SHAPE_IDEMPOTENCY));
STRUCT(UpdateImageRequest, MADE_FROM, LABEL(imageIdentifier, ImageIdentifier),
       M(clientToken, ImageClientToken, .flags = SHAPE_IDEMPOTENCY));

// --- images ----------------------------------------------------------------------

#define IMAGE                                                  \
	MUST(imageArn, NonBlankString), MUST(name, ImageName), \
	    MUST(state, ImageState),                           \
	    M(latestActiveImageVersion, NonBlankString),       \
	    M(latestFailedImageVersion, NonBlankString),       \
	    MUST(createdAt, Timestamp)

STRUCT(CreatedImage, IMAGE, MADE_FROM, M(tags, Tags), M(updatedAt, Timestamp),
       MUST(imageVersion, NonBlankString));
STRUCT(UpdatedImage, IMAGE, MADE_FROM, MUST(updatedAt, Timestamp),
       MUST(imageVersion, NonBlankString));
STRUCT(Image, IMAGE, M(tags, Tags), M(updatedAt, Timestamp));
STRUCT(ImageSummary, IMAGE);
LIST(ImageSummaries, ImageSummary, ANY_LO, ANY_HI);
STRUCT(ImageSummaryPage, M(nextToken, String), MUST(items, ImageSummaries));
STRUCT(DeletedImage, MUST(imageIdentifier, ImageIdentifier),
       MUST(state, ImageState));

// --- versions --------------------------------------------------------------------

STRUCT(ImageVersion, MADE_FROM, MUST(imageArn, NonBlankString),
       MUST(imageVersion, NonBlankString), MUST(state, VersionState),
       MUST(status, VersionStatus), MUST(createdAt, Timestamp),
       M(updatedAt, Timestamp), M(stateReason, String), M(tags, Tags));
LIST(ImageVersions, ImageVersion, ANY_LO, ANY_HI);
STRUCT(ImageVersionPage, M(nextToken, String), MUST(items, ImageVersions));
STRUCT(DeletedImageVersion, MUST(imageIdentifier, ImageIdentifier),
       MUST(imageVersion, NonBlankString), MUST(state, VersionState));

// --- builds ----------------------------------------------------------------------

SHAPE(Bytes, SHAPE_LONG, ANY_LO, ANY_HI);
STRUCT(SnapshotBuild, M(memorySnapshotSizeInBytes, Bytes),
       M(codeInstallSizeInBytes, Bytes), M(diskSnapshotSizeInBytes, Bytes));

#define BUILD                                                                \
	MUST(imageArn, NonBlankString), MUST(imageVersion, NonBlankString),  \
	    MUST(buildId, NonBlankString), MUST(buildState, BuildState),     \
	    MUST(architecture, Architecture), MUST(chipset, Chipset),        \
	    MUST(chipsetGeneration, NonBlankString), M(stateReason, String), \
	    MUST(createdAt, Timestamp)

STRUCT(ImageBuild, BUILD, M(snapshotBuild, SnapshotBuild));
STRUCT(ImageBuildSummary, BUILD);
LIST(ImageBuildSummaries, ImageBuildSummary, ANY_LO, ANY_HI);
STRUCT(ImageBuildPage, M(nextToken, String), MUST(items, ImageBuildSummaries));

// --- managed images --------------------------------------------------------------

STRUCT(ManagedImage, MUST(imageArn, NonBlankString), MUST(createdAt, Timestamp),
       M(updatedAt, Timestamp));
LIST(ManagedImages, ManagedImage, ANY_LO, ANY_HI);
STRUCT(ManagedImagePage, M(nextToken, String), MUST(items, ManagedImages));
ENUM(ManagedVersionStatus, "AVAILABLE", "DEPRECATED", "RECALLED");
STRUCT(ManagedImageVersion, MUST(imageArn, NonBlankString),
       MUST(imageVersion, NonBlankString), M(status, ManagedVersionStatus),
       M(supportedCpuConfigurations, CpuConfigurations),
       MUST(createdAt, Timestamp), M(updatedAt, Timestamp));
LIST(ManagedImageVersions, ManagedImageVersion, ANY_LO, ANY_HI);
STRUCT(ManagedImageVersionPage, M(nextToken, String),
       MUST(items, ManagedImageVersions));
