// thawd's command line.
#ifndef THAW_ENG_CONFIG_H
#define THAW_ENG_CONFIG_H

#include "base.h"

#define THAW_VERSION "0.1.0"

struct eng_config {
	char *state_dir, *socket_path, *kernel_path, *initrd_path;
	char *cell_path, *mkdisk_path, *mkroot_path;
	char *bases_dir; // the base images' store
	char *s3_endpoint, *s3_region, *s3_credentials; // img.h; or NULL
	char *endpoint_listen;		    // ADDR:PORT; NULL: not served
	char *endpoint_domain;		    // microVMs are UUID.DOMAIN there
	char *endpoint_cert, *endpoint_key; // PEM files; NULL: self-made
	bool endpoint_plain;		    // HTTP too, on loopback
	char *store_dir, *log_dir, *tmp_dir, *registry_path; // in state_dir
	const char **roles; // ARN=FILE, as given
	size_t nroles;
	bool has_group;
	gid_t group;
	char *listen, *keys_path, *region; // NULL: not given
	uint64_t memory_budget;		   // bytes; 0: no limit
	uint64_t template_budget;	   // bytes; 0: the default
	unsigned shells, blanks, jobs, max_cells;
	uint32_t uid_base;
	enum log_level log_level;
	bool doctor, doctor_json;
	bool help, version, openapi;
	bool accept_egress;  // INTERNET_EGRESS is taken, and not served
	unsigned time_scale; // tests: durations pass so many times as fast
};

// 0, or -EINVAL and what is wrong with which flag.
int eng_config_parse(struct eng_config *c, int argc, char **argv,
		     struct err *e);
void eng_config_free(struct eng_config *c);
extern const char eng_usage[];

#endif
