// How the table is written (table*.c only): each line one shape or one member.
#ifndef THAW_SHAPE_TABLE_H
#define THAW_SHAPE_TABLE_H

#include "shape_internal.h"

#define ANY_LO SHAPE_NO_MIN
#define ANY_HI SHAPE_NO_MAX

#define S(id) shape_t_##id
#define SHAPE(id, k, lo, hi, ...)    \
	const struct shape S(id) = { \
	    .name = #id, .kind = k, .min = lo, .max = hi, __VA_ARGS__}
#define TEXT(id, lo, hi, ...) SHAPE(id, SHAPE_STRING, lo, hi, __VA_ARGS__)
#define NUMBER(id, lo, hi) SHAPE(id, SHAPE_INT, lo, hi)
#define LIST(id, entry, lo, hi) SHAPE(id, SHAPE_LIST, lo, hi, .of = &S(entry))
#define MAP(id, k, entry, lo, hi) \
	SHAPE(id, SHAPE_MAP, lo, hi, .key = &S(k), .of = &S(entry))
#define WORDS(...)                \
	(const char *const[])     \
	{                         \
		__VA_ARGS__, NULL \
	}
#define ENUM(id, ...) \
	SHAPE(id, SHAPE_ENUM, ANY_LO, ANY_HI, .values = WORDS(__VA_ARGS__))
#define MEMBERS(id, k, ...)                                              \
	static const struct shape_member id##_members[] = {__VA_ARGS__}; \
	SHAPE(id, k, ANY_LO, ANY_HI, .members = id##_members,            \
	      .n = ARRAY_SIZE(id##_members))
#define STRUCT(id, ...) MEMBERS(id, SHAPE_STRUCT, __VA_ARGS__)
#define UNION(id, ...) MEMBERS(id, SHAPE_UNION, __VA_ARGS__)
#define EMPTY(id) SHAPE(id, SHAPE_STRUCT, ANY_LO, ANY_HI)

#define REQ SHAPE_REQUIRED
#define M(member, s, ...)                                    \
	{                                                    \
		.name = #member, .shape = &S(s), __VA_ARGS__ \
	}
#define MUST(member, s) M(member, s, .flags = REQ)
#define OWN(member, s) M(member, s, .flags = SHAPE_OWN)
#define LABEL(member, s) M(member, s, .flags = REQ, .place = SHAPE_PATH)
#define QUERY(member, s) M(member, s, .place = SHAPE_QUERY)
#define OWN_QUERY(member, s) \
	M(member, s, .flags = SHAPE_OWN, .place = SHAPE_QUERY)

#define T(id) extern const struct shape S(id)
// Of table.c.
T(String);
T(NonBlankString);
T(Version);
T(Boolean);
T(Integer);
T(Timestamp);
T(Own);
// Of table_image.c.
T(Tags);
T(TagKey);
T(ImageIdentifier);
T(ImageState);
T(VersionState);
T(VersionStatus);
T(Architecture);
T(Chipset);
T(CreateImageRequest);
T(CreatedImage);
T(UpdateImageRequest);
T(UpdatedImage);
T(Image);
T(ImageVersion);
T(ImageSummaryPage);
T(ImageVersionPage);
T(ImageBuild);
T(ImageBuildPage);
T(DeletedImage);
T(DeletedImageVersion);
T(ManagedImagePage);
T(ManagedImageVersionPage);
// Of table_vm.c.
T(Logging);
T(LogGroup);
T(LogStream);
T(NetworkConnector);
T(RunRequest);
T(Microvm);
T(MicrovmPage);
T(AuthToken);
T(OpResult);
T(MicrovmIdentifier);
T(MicrovmState);
T(PortSpecifications);
T(PositiveInteger);
T(WaitSeconds);
T(LabelFilters);
T(StateFilters);
T(RoleArn);
T(KmsKeyIdentifier);
#undef T

#endif
