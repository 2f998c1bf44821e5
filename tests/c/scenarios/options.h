/* From the options of the table to the configurations of the library. */
#ifndef SCENARIOS_OPTIONS_H
#define SCENARIOS_OPTIONS_H

#include "scene.h"

static gpuc_limits_t *limits(const cJSON *value) {
    gpuc_limits_t *made = gpuc_limits_new();
    const cJSON *one, *file;
    cJSON_ArrayForEach(one, value) {
        const char *key = one->string;
        if (strcmp(key, "memory") == 0) gpuc_limits_set_memory_max(made, (uint64_t)number(one));
        else if (strcmp(key, "swap") == 0) gpuc_limits_set_memory_swap_max(made, (uint64_t)number(one));
        else if (strcmp(key, "cpus") == 0) gpuc_limits_set_cpus(made, one->valuedouble);
        else if (strcmp(key, "cpuset_cpus") == 0) gpuc_limits_set_cpuset_cpus(made, text(one));
        else if (strcmp(key, "pids") == 0) gpuc_limits_set_pids_max(made, (uint64_t)number(one));
        else if (strcmp(key, "raw") == 0) cJSON_ArrayForEach(file, one) gpuc_limits_raw(made, file->string, text(file));
        else unknown("limit", key);
    }
    return made;
}

static void add_mount(gpuc_config_t *config, const cJSON *value) {
    const char *kind = text(get(value, "kind")), *target = text(get(value, "target"));
    const cJSON *source = get(value, "source"), *one;
    uint32_t flags = 0;
    uint64_t size = 0;
    cJSON_ArrayForEach(one, value) {
        const char *key = one->string;
        if (strcmp(key, "read_only") == 0) flags |= cJSON_IsTrue(one) ? GPUC_MOUNT_READ_ONLY : 0;
        else if (strcmp(key, "executable") == 0) flags |= cJSON_IsTrue(one) ? 0 : GPUC_MOUNT_NO_EXECUTE;
        else if (strcmp(key, "size") == 0) size = (uint64_t)number(one);
        else if (strcmp(key, "kind") != 0 && strcmp(key, "target") != 0 && strcmp(key, "source") != 0)
            unknown("option of a mount", key);
    }
    if (strcmp(kind, "bind") == 0) gpuc_config_bind(config, text(source), target, flags);
    else if (strcmp(kind, "volume") == 0) gpuc_config_volume(config, text(source), target, flags);
    else if (strcmp(kind, "tmpfs") == 0) gpuc_config_tmpfs(config, target, size, flags);
    else unknown("mount", kind);
}

static gpuc_gpu_request_t *request(const cJSON *value) {
    const cJSON *gpus = get(value, "gpus"), *one;
    char count[32];
    if (cJSON_IsNumber(gpus)) snprintf(count, sizeof count, "count:%lld", number(gpus));
    gpuc_gpu_request_t *made = gpuc_gpu_request_new(cJSON_IsNumber(gpus) ? count : text(gpus));
    cJSON_ArrayForEach(one, value) {
        const char *key = one->string;
        if (strcmp(key, "shared") == 0) gpuc_gpu_request_set_shared(made, (uint32_t)number(one));
        else if (strcmp(key, "fraction") == 0) gpuc_gpu_request_set_fraction(made, (uint64_t)number(one));
        else if (strcmp(key, "min_free_memory") == 0) gpuc_gpu_request_set_min_free_memory(made, (uint64_t)number(one));
        else if (strcmp(key, "model") == 0) gpuc_gpu_request_set_model(made, text(one));
        else if (strcmp(key, "mig_profile") == 0) gpuc_gpu_request_set_mig_profile(made, text(one));
        else if (strcmp(key, "gpus") != 0) unknown("wish for GPUs", key);
    }
    return made;
}

static gpuc_private_network_t *network(const cJSON *value) {
    gpuc_error_t *error;
    gpuc_private_network_t *made = gpuc_private_network_new(text(get(value, "name")), &error);
    CHECK_NO_ERROR(error);
    const cJSON *one;
    cJSON_ArrayForEach(one, value) {
        const char *key = one->string;
        if (strcmp(key, "ipv4") == 0) CHECK(gpuc_private_network_set_ipv4(made, text(one), NULL) == 0);
        else if (strcmp(key, "ipv6") == 0) gpuc_private_network_set_ipv6(made, cJSON_IsTrue(one));
        else if (strcmp(key, "outbound") == 0) gpuc_private_network_set_outbound(made, cJSON_IsTrue(one));
        else if (strcmp(key, "host_access") == 0) gpuc_private_network_set_host_access(made, cJSON_IsTrue(one));
        else if (strcmp(key, "name") != 0) unknown("option of a network", key);
    }
    return made;
}

static gpuc_host_service_t *service(const cJSON *value) {
    gpuc_host_service_t *made =
        gpuc_host_service_new(GPUC_PROTOCOL_TCP, (uint16_t)number(get(value, "port")), text(get(value, "host")));
    const cJSON *one;
    cJSON_ArrayForEach(one, value) {
        const char *key = one->string;
        if (strcmp(key, "address") == 0) gpuc_host_service_set_address(made, text(one));
        else if (strcmp(key, "port") != 0 && strcmp(key, "host") != 0) unknown("option of a service", key);
    }
    return made;
}

static void set(scene_t *scene, gpuc_config_t *config, const char *key, const cJSON *value) {
    const cJSON *one;
    if (strcmp(key, "name") == 0) gpuc_config_set_name(config, text(value));
    else if (strcmp(key, "command") == 0 || strcmp(key, "entrypoint") == 0) {
        const char **all = words(value);
        (key[0] == 'c' ? gpuc_config_set_command : gpuc_config_set_entrypoint)(config, all);
        free(all);
    } else if (strcmp(key, "env") == 0) cJSON_ArrayForEach(one, value) gpuc_config_env(config, one->string, text(one));
    else if (strcmp(key, "cwd") == 0) gpuc_config_set_working_dir(config, text(value));
    else if (strcmp(key, "user") == 0) gpuc_config_set_user(config, text(value));
    else if (strcmp(key, "hostname") == 0) gpuc_config_set_hostname(config, text(value));
    else if (strcmp(key, "init") == 0) gpuc_config_set_init(config, cJSON_IsTrue(value));
    else if (strcmp(key, "read_only") == 0) gpuc_config_set_read_only(config, cJSON_IsTrue(value));
    else if (strcmp(key, "writable_memory") == 0) gpuc_config_set_writable_memory(config, (uint64_t)number(value));
    else if (strcmp(key, "limits") == 0) {
        gpuc_limits_t *made = limits(value);
        gpuc_config_set_limits(config, made);
        gpuc_limits_free(made);
    } else if (strcmp(key, "cgroup") == 0) gpuc_config_set_cgroup(config, cJSON_IsTrue(value));
    else if (strcmp(key, "network") == 0 && cJSON_IsObject(value)) {
        gpuc_private_network_t *made = network(value);
        gpuc_config_set_private_network(config, made);
        gpuc_private_network_free(made);
    } else if (strcmp(key, "network") == 0) gpuc_config_set_host_network(config, strcmp(text(value), "host") == 0);
    else if (strcmp(key, "user_namespace") == 0) {
        CHECK(strcmp(text(value), "oneself") == 0);
        gpuc_config_set_user_namespace_oneself(config);
    } else if (strcmp(key, "time_offsets") == 0)
        gpuc_config_set_time_offsets(config, number(at(value, 0)), number(at(value, 1)));
    else if (strcmp(key, "mounts") == 0) cJSON_ArrayForEach(one, value) add_mount(config, one);
    else if (strcmp(key, "shm_size") == 0) gpuc_config_set_shm_size(config, (uint64_t)number(value));
    else if (strcmp(key, "publish") == 0) {
        cJSON_ArrayForEach(one, value)
            gpuc_config_publish(config, (uint16_t)number(at(one, 0)), (uint16_t)number(at(one, 1)));
    } else if (strcmp(key, "host_services") == 0) {
        cJSON_ArrayForEach(one, value) {
            gpuc_host_service_t *made = service(one);
            gpuc_config_expose_host(config, made);
            gpuc_host_service_free(made);
        }
    } else if (strcmp(key, "gpus") == 0) {
        gpuc_gpu_request_t *made = request(value);
        gpuc_config_set_gpu_request(config, made);
        gpuc_config_set_gpu_allocator(config, scene->allocator);
        gpuc_gpu_request_free(made);
    } else if (strcmp(key, "lease") == 0)
        gpuc_config_set_gpu_lease(config, scene->leases[place(scene, text(value))]);
    else if (strcmp(key, "join") == 0) gpuc_config_join_network(config, scene->sandboxes[place(scene, text(value))]);
    else if (strcmp(key, "add_capabilities") == 0) {
        cJSON_ArrayForEach(one, value) gpuc_config_add_capability(config, text(one));
    } else if (strcmp(key, "drop_capabilities") == 0) {
        cJSON_ArrayForEach(one, value) gpuc_config_drop_capability(config, text(one));
    } else if (strcmp(key, "seccomp") == 0) {
        char *json = cJSON_PrintUnformatted(value);
        gpuc_config_set_seccomp_json(config, json);
        free(json);
    } else if (strcmp(key, "unfiltered") == 0) gpuc_config_set_unfiltered(config);
    else if (strcmp(key, "resource_limits") == 0) {
        cJSON_ArrayForEach(one, value)
            gpuc_config_resource_limit(config, one->string, (uint64_t)number(one), (uint64_t)number(one));
    } else if (strcmp(key, "sysctls") == 0) cJSON_ArrayForEach(one, value) gpuc_config_sysctl(config, one->string, text(one));
    else if (strcmp(key, "oom_score") == 0) gpuc_config_set_oom_score(config, (int)number(value));
    else if (strcmp(key, "umask") == 0) gpuc_config_set_umask(config, (uint32_t)number(value));
    else if (strcmp(key, "terminal") == 0)
        gpuc_config_set_terminal(config, (uint16_t)number(at(value, 0)), (uint16_t)number(at(value, 1)));
    else if (strcmp(key, "image") != 0 && strcmp(key, "directory") != 0) unknown("option", key);
}

static gpuc_config_t *config_of(scene_t *scene, const cJSON *with, gpuc_error_t **error) {
    const cJSON *image = get(with, "image"), *directory = get(with, "directory"), *one;
    gpuc_config_t *config = image != NULL       ? gpuc_config_new(text(image), error)
                            : directory != NULL ? gpuc_config_new_from_directory(text(directory), error)
                                                : gpuc_config_new_from_image(scene->image, error);
    if (config == NULL) return NULL;
    gpuc_config_set_store(config, scene->store);
    for (int stream = 0; stream < 3; stream++) gpuc_config_set_stdio(config, stream, GPUC_STDIO_PIPED);
    if (scene->allocator != NULL) gpuc_config_set_driver_root(config, scene->driver);
    /* First everything goes, then what is added comes back. */
    const cJSON *dropped = get(with, "drop_capabilities");
    if (dropped != NULL) set(scene, config, "drop_capabilities", dropped);
    cJSON_ArrayForEach(one, with) {
        if (one != dropped) set(scene, config, one->string, one);
    }
    return config;
}

static gpuc_image_t *build(scene_t *scene, const cJSON *with, const char *reference, gpuc_error_t **error) {
    gpuc_image_builder_t *builder = gpuc_image_builder_new(scene->store, error);
    CHECK(builder != NULL);
    const cJSON *base = get(with, "base"), *one, *part;
    if (base != NULL) {
        gpuc_image_t *image = gpuc_image_store_get(scene->store, text(base), error);
        gpuc_image_builder_set_base(builder, image);
        gpuc_image_free(image);
    }
    cJSON_ArrayForEach(one, with) {
        const char *key = one->string;
        if (strcmp(key, "copy") == 0) {
            cJSON_ArrayForEach(part, one)
                gpuc_image_builder_copy_following_links(builder, text(at(part, 0)), text(at(part, 1)));
        } else if (strcmp(key, "files") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_file(builder, text(at(part, 0)), text(at(part, 1)),
                                                                  strlen(text(at(part, 1))), (uint32_t)number(at(part, 2)));
        } else if (strcmp(key, "directories") == 0) {
            cJSON_ArrayForEach(part, one)
                gpuc_image_builder_directory(builder, text(at(part, 0)), (uint32_t)number(at(part, 1)));
        } else if (strcmp(key, "symlinks") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_symlink(builder, text(at(part, 0)), text(at(part, 1)));
        } else if (strcmp(key, "env") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_env(builder, part->string, text(part));
        } else if (strcmp(key, "labels") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_label(builder, part->string, text(part));
        } else if (strcmp(key, "expose") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_expose(builder, (uint16_t)number(part));
        } else if (strcmp(key, "volumes") == 0) {
            cJSON_ArrayForEach(part, one) gpuc_image_builder_volume(builder, text(part));
        } else if (strcmp(key, "entrypoint") == 0 || strcmp(key, "command") == 0) {
            const char **all = words(one);
            (key[0] == 'c' ? gpuc_image_builder_set_command : gpuc_image_builder_set_entrypoint)(builder, all);
            free(all);
        } else if (strcmp(key, "user") == 0) gpuc_image_builder_set_user(builder, text(one));
        else if (strcmp(key, "working_dir") == 0) gpuc_image_builder_set_working_dir(builder, text(one));
        else if (strcmp(key, "stop_signal") == 0) gpuc_image_builder_set_stop_signal(builder, text(one));
        else if (strcmp(key, "created") == 0) gpuc_image_builder_set_created(builder, (uint64_t)number(one));
        else if (strcmp(key, "reference") != 0 && strcmp(key, "base") != 0) unknown("option of a build", key);
    }
    gpuc_image_t *image = gpuc_image_builder_commit(builder, reference, error);
    gpuc_image_builder_free(builder);
    return image;
}

/* What an image says, without what depends on the machine; frees it. */
static char *described(gpuc_image_t *image) {
    if (image == NULL) return NULL;
    cJSON *config = cJSON_Parse(gpuc_image_config_json(image));
    cJSON_DeleteItemFromObject(config, "architecture");
    cJSON_DeleteItemFromObject(config, "created");
    cJSON_AddStringToObject(config, "id", gpuc_image_id(image));
    cJSON_AddStringToObject(config, "reference", gpuc_image_reference(image));
    char *words = cJSON_PrintUnformatted(config);
    cJSON_Delete(config);
    gpuc_image_free(image);
    return words;
}

#endif
