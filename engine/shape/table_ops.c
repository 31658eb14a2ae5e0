// The operations: path, status, request, answer, errors.
#include "table.h"

// --- errors ------------------------------------------------------------------

STRUCT(Problem, M(message, String));
STRUCT(MissingProblem, MUST(message, String), M(resourceType, String),
       M(resourceId, String), OWN(Type, String));
STRUCT(ResourceProblem, M(message, String), M(resourceId, String),
       M(resourceType, String));
STRUCT(QuotaProblem, M(message, String), M(resourceId, String),
       M(resourceType, String), M(serviceCode, String), M(quotaCode, String));
#define RETRY_AFTER                                          \
	M(retryAfterSeconds, Integer, .place = SHAPE_HEADER, \
	  .wire = "Retry-After")
STRUCT(ThrottlingProblem, M(message, String), M(serviceCode, String),
       M(quotaCode, String), RETRY_AFTER);
// A run that fails has a record; only thaw says which.
STRUCT(InternalProblem, M(message, String), RETRY_AFTER,
       OWN(resourceId, String), OWN(resourceType, String));
STRUCT(CapacityProblem, MUST(message, String));
STRUCT(TaggingProblem, M(Type, String), M(message, String));

#define ERROR(id, code, s) \
	static const struct shape_error id = {#id, code, &S(s)}
ERROR(ValidationException, 400, Problem);
ERROR(InvalidParameterValueException, 400, TaggingProblem);
ERROR(ServiceQuotaExceededException, 402, QuotaProblem);
ERROR(AccessDeniedException, 403, Problem);
ERROR(ResourceNotFoundException, 404, MissingProblem);
ERROR(ConflictException, 409, ResourceProblem);
ERROR(ResourceConflictException, 409, TaggingProblem);
ERROR(ThrottlingException, 429, ThrottlingProblem);
ERROR(TooManyRequestsException, 429, TaggingProblem);
ERROR(InternalServerException, 500, InternalProblem);
ERROR(InsufficientCapacityException, 500, CapacityProblem);
ERROR(ServiceException, 500, TaggingProblem);

#define EVERY                                             \
	&InternalServerException, &AccessDeniedException, \
	    &ThrottlingException, &ValidationException
#define MISSING &ResourceNotFoundException
#define CONFLICT &ConflictException
#define QUOTA &ServiceQuotaExceededException
#define TAGGING                                       \
	&TooManyRequestsException, &ServiceException, \
	    &InvalidParameterValueException, MISSING

// --- requests ----------------------------------------------------------------

#define VM LABEL(microvmIdentifier, MicrovmIdentifier)
#define IMAGE LABEL(imageIdentifier, ImageIdentifier)
#define VERSION LABEL(imageVersion, NonBlankString)
#define PAGE QUERY(maxResults, PageSize), QUERY(nextToken, String)
#define WAIT OWN_QUERY(wait, MicrovmState), OWN_QUERY(timeout, WaitSeconds)

NUMBER(PageSize, 1, 50);
TEXT(TaggableResource, 1, 10000,
     .pattern =
	 "arn:(aws[a-zA-Z-]*):lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?"
	 "-[a-z]+-\\d{1}:\\d{12}:(function:[a-zA-Z0-9-_]+(:(\\$LATEST|"
	 "[a-zA-Z0-9-_]+))?|layer:([a-zA-Z0-9-_]+)|code-signing-config:csc-"
	 "[a-z0-9]{17}|event-source-mapping:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-"
	 "[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|(capacity-provider|"
	 "network-connector|microvm-image):[a-zA-Z0-9-_]+)");

STRUCT(MicrovmRequest, VM, WAIT);
STRUCT(ListMicrovmsRequest, PAGE, QUERY(imageIdentifier, ImageIdentifier),
       QUERY(imageVersion, String),
       M(label, LabelFilters, .flags = SHAPE_OWN, .place = SHAPE_QUERY),
       M(state, StateFilters, .flags = SHAPE_OWN, .place = SHAPE_QUERY),
       OWN_QUERY(logGroup, LogGroup), OWN_QUERY(logStream, LogStream));
STRUCT(AuthTokenRequest, VM, MUST(expirationInMinutes, PositiveInteger),
       MUST(allowedPorts, PortSpecifications));
STRUCT(ShellAuthTokenRequest, VM, MUST(expirationInMinutes, PositiveInteger));

STRUCT(ImageRequest, IMAGE);
STRUCT(ListImagesRequest, PAGE, QUERY(nameFilter, NonBlankString));
STRUCT(VersionRequest, IMAGE, VERSION);
STRUCT(UpdateVersionRequest, IMAGE, VERSION, MUST(status, VersionStatus));
STRUCT(ListOfImageRequest, PAGE, IMAGE);
STRUCT(BuildRequest, IMAGE, VERSION, LABEL(buildId, NonBlankString));
STRUCT(ListBuildsRequest, PAGE, IMAGE, VERSION,
       QUERY(architecture, Architecture), QUERY(chipset, Chipset),
       QUERY(chipsetGeneration, NonBlankString));
STRUCT(ListManagedRequest, PAGE);

LIST(TagKeys, TagKey, ANY_LO, ANY_HI);
#define RESOURCE LABEL(Resource, TaggableResource)
STRUCT(ListTagsRequest, RESOURCE);
STRUCT(ListTagsAnswer, M(Tags, Tags));
STRUCT(TagRequest, RESOURCE, MUST(Tags, Tags));
STRUCT(UntagRequest, RESOURCE,
       M(TagKeys, TagKeys, .flags = REQ, .place = SHAPE_QUERY,
	 .wire = "tagKeys"));

// --- operations --------------------------------------------------------------

#define P "/2025-09-09"
#define VMS P "/microvms"
#define IMAGES P "/microvm-images"
#define MANAGED P "/managed-microvm-images"
#define TAGS "/2017-03-31/tags/{Resource}"
#define ERRORS(...) .errors = {EVERY, __VA_ARGS__}

const struct shape_op shape_ops[] = {
    {"RunMicrovm", "POST", VMS, 200, &S(RunRequest), &S(Microvm),
     ERRORS(MISSING, CONFLICT, QUOTA, &InsufficientCapacityException),
     .summary = "Starts a microVM from an image"},
    {"GetMicrovm", "GET", VMS "/{microvmIdentifier}", 200, &S(MicrovmRequest),
     &S(Microvm), ERRORS(MISSING), .readonly = true,
     .summary = "Describes one microVM"},
    {"ListMicrovms", "GET", VMS, 200, &S(ListMicrovmsRequest), &S(MicrovmPage),
     ERRORS(MISSING), .readonly = true, .paged = true,
     .summary = "Lists microVMs, by image and version if given"},
    {"SuspendMicrovm", "POST", VMS "/{microvmIdentifier}/suspend", 200,
     &S(MicrovmRequest), &S(OpResult), ERRORS(MISSING, CONFLICT),
     .idempotent = true,
     .summary = "Puts a running microVM to sleep, memory and all"},
    {"ResumeMicrovm", "POST", VMS "/{microvmIdentifier}/resume", 200,
     &S(MicrovmRequest), &S(OpResult), ERRORS(MISSING, CONFLICT),
     .idempotent = true, .summary = "Lets a suspended microVM run on"},
    {"TerminateMicrovm", "DELETE", VMS "/{microvmIdentifier}", 200,
     &S(MicrovmRequest), &S(OpResult), ERRORS(MISSING, CONFLICT),
     .idempotent = true, .summary = "Ends a microVM, whatever its state"},
    {"CreateMicrovmAuthToken", "POST", VMS "/{microvmIdentifier}/auth-token",
     200, &S(AuthTokenRequest), &S(AuthToken), ERRORS(MISSING, CONFLICT),
     .summary = "Makes a token for ports of a microVM's endpoint"},
    {"CreateMicrovmShellAuthToken", "POST",
     VMS "/{microvmIdentifier}/shell-auth-token", 200,
     &S(ShellAuthTokenRequest), &S(AuthToken), ERRORS(MISSING, CONFLICT),
     .summary = "Makes a token for a microVM's shell"},

    {"CreateMicrovmImage", "POST", IMAGES, 201, &S(CreateImageRequest),
     &S(CreatedImage), ERRORS(MISSING, CONFLICT, QUOTA),
     .summary = "Makes an image from a code artifact, and its first version"},
    {"UpdateMicrovmImage", "PUT", IMAGES "/{imageIdentifier}", 200,
     &S(UpdateImageRequest), &S(UpdatedImage), ERRORS(MISSING, CONFLICT, QUOTA),
     .idempotent = true, .summary = "Makes another version of an image"},
    {"GetMicrovmImage", "GET", IMAGES "/{imageIdentifier}", 200,
     &S(ImageRequest), &S(Image), ERRORS(MISSING), .readonly = true,
     .summary = "Describes one image"},
    {"DeleteMicrovmImage", "DELETE", IMAGES "/{imageIdentifier}", 200,
     &S(ImageRequest), &S(DeletedImage), ERRORS(MISSING, CONFLICT),
     .idempotent = true, .summary = "Deletes an image with all its versions"},
    {"ListMicrovmImages", "GET", IMAGES, 200, &S(ListImagesRequest),
     &S(ImageSummaryPage), ERRORS(NULL), .readonly = true, .paged = true,
     .summary = "Lists images, by a part of their names if given"},
    {"GetMicrovmImageVersion", "GET",
     IMAGES "/{imageIdentifier}/versions/{imageVersion}", 200,
     &S(VersionRequest), &S(ImageVersion), ERRORS(MISSING), .readonly = true,
     .summary = "Describes one version of an image"},
    {"UpdateMicrovmImageVersion", "PATCH",
     IMAGES "/{imageIdentifier}/versions/{imageVersion}", 200,
     &S(UpdateVersionRequest), &S(ImageVersion), ERRORS(MISSING, CONFLICT),
     .summary = "Says whether a version may be run"},
    {"DeleteMicrovmImageVersion", "DELETE",
     IMAGES "/{imageIdentifier}/versions/{imageVersion}", 200,
     &S(VersionRequest), &S(DeletedImageVersion), ERRORS(MISSING, CONFLICT),
     .idempotent = true, .summary = "Deletes one version of an image"},
    {"ListMicrovmImageVersions", "GET", IMAGES "/{imageIdentifier}/versions",
     200, &S(ListOfImageRequest), &S(ImageVersionPage), ERRORS(MISSING),
     .readonly = true, .paged = true, .summary = "Lists an image's versions"},
    {"ListMicrovmImageBuilds", "GET",
     IMAGES "/{imageIdentifier}/versions/{imageVersion}/builds", 200,
     &S(ListBuildsRequest), &S(ImageBuildPage), ERRORS(MISSING),
     .readonly = true, .paged = true,
     .summary = "Lists the builds of a version"},
    {"GetMicrovmImageBuild", "GET",
     IMAGES "/{imageIdentifier}/versions/{imageVersion}/builds/{buildId}", 200,
     &S(BuildRequest), &S(ImageBuild), ERRORS(MISSING), .readonly = true,
     .summary = "Describes one build of a version"},

    {"ListManagedMicrovmImages", "GET", MANAGED, 200, &S(ListManagedRequest),
     &S(ManagedImagePage), ERRORS(NULL), .readonly = true, .paged = true,
     .summary = "Lists the base images there are"},
    {"ListManagedMicrovmImageVersions", "GET",
     MANAGED "/{imageIdentifier}/versions", 200, &S(ListOfImageRequest),
     &S(ManagedImageVersionPage), ERRORS(MISSING), .readonly = true,
     .paged = true, .summary = "Lists a base image's versions"},

    {"ListTags", "GET", TAGS, 200, &S(ListTagsRequest), &S(ListTagsAnswer),
     ERRORS(TAGGING), .readonly = true, .summary = "Lists an image's tags"},
    {"TagResource", "POST", TAGS, 204, &S(TagRequest), NULL,
     ERRORS(TAGGING, &ResourceConflictException), .idempotent = true,
     .summary = "Adds tags to an image, or changes them"},
    {"UntagResource", "DELETE", TAGS, 204, &S(UntagRequest), NULL,
     ERRORS(TAGGING, &ResourceConflictException), .idempotent = true,
     .summary = "Takes tags off an image"},
};
const size_t shape_nops = ARRAY_SIZE(shape_ops);
