// Why a build failed, in the service's words. A row of its own for each, in the
// order of the API's documentation; thaw-mkroot and the engine share the names.
#ifndef THAW_IMG_REASON_H
#define THAW_IMG_REASON_H

#define IMG_REASONS(X)                   \
	X(S3_ACCESS_DENIED)              \
	X(S3_NO_SUCH_KEY)                \
	X(S3_NO_SUCH_BUCKET)             \
	X(S3_INVALID_OBJECT)             \
	X(S3_CROSS_REGION_ACCESS_DENIED) \
	X(ARCHIVE_DOCKERFILE_NOT_FOUND)  \
	X(ARCHIVE_INVALID)               \
	X(CONTAINER_BUILD_FAILED)        \
	X(DISK_STORAGE_FULL)             \
	X(INTERNAL_PLATFORM_ERROR)

enum img_reason {
	IMG_NO_REASON,
#define X(name) IMG_##name,
	IMG_REASONS(X)
#undef X
	    IMG_NUM_REASONS
};

// "S3_NO_SUCH_KEY"; "" for IMG_NO_REASON and what is out of range.
const char *img_reason_name(enum img_reason r);
// IMG_NO_REASON: no such name.
enum img_reason img_reason_parse(const char *name);

#endif
