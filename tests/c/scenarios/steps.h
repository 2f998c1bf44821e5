/* What the steps do. */
#ifndef SCENARIOS_STEPS_H
#define SCENARIOS_STEPS_H

#include "options.h"

static void take_output(outcome_t *outcome, gpuc_output_t *output) {
    if (output == NULL) return;
    char **texts[] = {&outcome->out, &outcome->err};
    for (int stream = 1; stream <= 2; stream++) {
        size_t size;
        const void *bytes = gpuc_output_bytes(output, stream, &size);
        *texts[stream - 1] = strndup((const char *)bytes, size);
    }
    outcome->ended = true;
    outcome->status = gpuc_output_status(output);
    gpuc_output_free(output);
}

static char *input_of(const cJSON *step, size_t *size) {
    const cJSON *input = get(step, "input"), *times = get(step, "times");
    size_t one = input == NULL ? 0 : strlen(text(input)), count = times == NULL ? 1 : (size_t)number(times);
    char *all = (char *)malloc(one * count + 1);
    for (size_t index = 0; index < count; index++) memcpy(all + index * one, input == NULL ? "" : text(input), one);
    *size = one * count;
    return all;
}

static int64_t patience(const cJSON *step, int64_t otherwise) {
    const cJSON *timeout = get(step, "timeout");
    return timeout == NULL ? otherwise : number(timeout);
}

static gpuc_cancel_t *cancel_of(const cJSON *step) {
    gpuc_cancel_t *cancel = gpuc_cancel_new();
    if (cJSON_IsTrue(get(step, "cancelled"))) gpuc_cancel_switch(cancel);
    return cancel;
}

static void detach(scene_t *scene, gpuc_sandbox_t *sandbox, outcome_t *outcome) {
    int pid = gpuc_sandbox_pid(sandbox);
    if (gpuc_sandbox_detach(sandbox, &outcome->error) < 0) return;
    CHECK(kill(pid, SIGKILL) == 0);
    long long end = now() + LIMIT;
    /* Whoever detaches a child and lives on waits for it, like for any other. */
    while (waitpid(-1, NULL, WNOHANG) >= 0) CHECK(now() < end);
    char path[128];
    snprintf(path, sizeof path, "%s/store/scratch", scene->directory);
    for (int left = 1; left > 0 && now() < end;) {
        if (gpuc_collect_abandoned(scene->store, &outcome->error) < 0) return;
        DIR *directory = opendir(path);
        left = -2;
        while (directory != NULL && readdir(directory) != NULL) left++;
        if (directory != NULL) closedir(directory);
    }
}

static void with_images(scene_t *scene, const char *what, const cJSON *step, const cJSON *with, outcome_t *outcome) {
    gpuc_error_t **error = &outcome->error;
    const cJSON *reference = get(step, "reference"), *one;
    if (strcmp(what, "build") == 0) {
        outcome->text = described(build(scene, with, text(get(with, "reference")), error));
    } else if (strcmp(what, "image") == 0) {
        outcome->text = described(gpuc_image_store_get(scene->store, text(reference), error));
    } else if (strcmp(what, "tag") == 0) {
        gpuc_image_t *image = gpuc_image_store_get(scene->store, text(reference), error);
        if (image == NULL) return;
        outcome->text = described(gpuc_image_store_tag(scene->store, image, text(get(step, "new")), error));
        gpuc_image_free(image);
    } else if (strcmp(what, "push") == 0) {
        gpuc_image_t *image = gpuc_image_store_get(scene->store, text(get(step, "image")), error);
        if (image == NULL) return;
        gpuc_transfer_t *transfer = gpuc_transfer_new();
        gpuc_transfer_set_credentials(transfer, NULL, NULL);
        outcome->text = own(gpuc_image_store_push(scene->store, image, text(reference), transfer, error));
        gpuc_transfer_free(transfer);
        gpuc_image_free(image);
    } else if (strcmp(what, "remove") == 0) {
        gpuc_image_store_remove(scene->store, text(reference), error);
    } else if (strcmp(what, "images") == 0) {
        gpuc_images_t *all = gpuc_image_store_list(scene->store, error);
        outcome->count = (long)gpuc_images_count(all);
        gpuc_images_free(all);
    } else if (strcmp(what, "garbage") == 0) {
        uint64_t layers = 0;
        gpuc_cancel_t *cancel = cancel_of(step);
        gpuc_image_store_collect_garbage_cancellable(scene->store, cancel, &layers, NULL, error);
        outcome->count = (long)layers;
        gpuc_cancel_free(cancel);
    } else {
        gpuc_transfer_t *transfer = gpuc_transfer_new();
        gpuc_cancel_t *cancel = cancel_of(step);
        gpuc_transfer_set_cancel(transfer, cancel);
        cJSON_ArrayForEach(one, with) {
            if (strcmp(one->string, "reference") == 0) gpuc_transfer_set_reference(transfer, text(one));
            else if (strcmp(one->string, "select") == 0) gpuc_transfer_set_select(transfer, text(one));
            else if (strcmp(one->string, "platform") == 0) gpuc_transfer_set_platform(transfer, text(one));
            else if (strcmp(one->string, "path") != 0) unknown("option of an import", one->string);
        }
        if (strcmp(what, "pull") == 0) {
            gpuc_transfer_set_credentials(transfer, NULL, NULL);
            outcome->text = described(gpuc_image_store_pull(scene->store, text(reference), transfer, error));
        } else {
            outcome->text = described(gpuc_image_store_import(scene->store, text(get(with, "path")), transfer, error));
        }
        gpuc_cancel_free(cancel);
        gpuc_transfer_free(transfer);
    }
}

static void with_gpus(scene_t *scene, const char *what, const cJSON *step, const cJSON *with, outcome_t *outcome) {
    gpuc_error_t **error = &outcome->error;
    size_t here = place_of(scene, step);
    gpuc_sandbox_t *sandbox = scene->sandboxes[here];
    gpuc_gpu_request_t *wanted = get(with, "gpus") == NULL ? NULL : request(with);
    if (strcmp(what, "gpus") == 0) {
        outcome->count = length(gpuc_sandbox_json(sandbox, error), "gpus");
    } else if (strcmp(what, "lease") == 0) {
        gpuc_cancel_t *cancel = cancel_of(step);
        gpuc_gpu_lease_t *lease = gpuc_gpu_allocator_acquire(scene->allocator, wanted, patience(step, 0), cancel, error);
        outcome->count = (long)gpuc_gpu_lease_count(lease);
        if (lease != NULL) scene->leases[here] = lease;
        gpuc_cancel_free(cancel);
    } else if (strcmp(what, "release") == 0) {
        gpuc_gpu_lease_release(scene->leases[here], error);
        scene->leases[here] = NULL;
    } else if (strcmp(what, "drop") == 0) {
        gpuc_gpu_lease_free(scene->leases[here]);
        scene->leases[here] = NULL;
    } else if (strcmp(what, "leases") == 0 || strcmp(what, "quarantined") == 0) {
        outcome->count = length(gpuc_gpu_allocator_status_json(scene->allocator, error), what);
    } else if (strcmp(what, "queue") == 0) {
        gpuc_gpu_ticket_t *ticket = gpuc_gpu_allocator_enqueue(scene->allocator, wanted, error);
        if (ticket != NULL && gpuc_gpu_ticket_wait(ticket, 0, &scene->leases[here], error) == 0)
            scene->tickets[here] = ticket;
        else
            gpuc_gpu_ticket_free(ticket);
        outcome->count = (long)gpuc_gpu_lease_count(scene->leases[here]);
    } else if (strcmp(what, "served") == 0) {
        CHECK(gpuc_gpu_ticket_wait(scene->tickets[here], LIMIT, &scene->leases[here], error) == 1);
        gpuc_gpu_ticket_free(scene->tickets[here]);
        scene->tickets[here] = NULL;
        outcome->count = (long)gpuc_gpu_lease_count(scene->leases[here]);
    } else if (strcmp(what, "quarantine") == 0 || strcmp(what, "readmit") == 0) {
        char *json = gpuc_gpu_allocator_status_json(scene->allocator, error);
        cJSON *status = cJSON_Parse(json);
        const cJSON *gpu = get(step, "gpu");
        if (gpu == NULL) gpu = get(at(get(status, "gpus"), 0), "uuid");
        outcome->count = (what[0] == 'q' ? gpuc_gpu_allocator_quarantine
                                         : gpuc_gpu_allocator_readmit)(scene->allocator, text(gpu), error);
        cJSON_Delete(status);
        gpuc_string_free(json);
    } else if (strcmp(what, "attach") == 0) {
        const cJSON *lease = get(with, "lease");
        gpuc_gpu_grant_t *grant = lease != NULL
                                      ? gpuc_sandbox_attach_lease(sandbox, scene->leases[place(scene, text(lease))], error)
                                      : gpuc_sandbox_attach_gpus(sandbox, wanted, 0, NULL, error);
        if (grant != NULL) scene->grants[scene->granted++] = grant;
        outcome->count = 0;
        for (gpuc_gpu_grant_t *one; (one = gpuc_sandbox_granted(sandbox, (size_t)outcome->count, NULL)) != NULL; outcome->count++)
            gpuc_gpu_grant_free(one);
    } else if (strcmp(what, "take") == 0) {
        gpuc_gpu_grant_t *grant = scene->grants[--scene->granted];
        gpuc_sandbox_detach_gpus(sandbox, grant, false, error);
        gpuc_gpu_grant_free(grant);
    } else if (strcmp(what, "mig") == 0) {
        char path[128];
        snprintf(path, sizeof path, "%s/mig", scene->directory);
        gpuc_mig_devices_t *devices = gpuc_mig_devices_open(scene->driver, path, error);
        CHECK(devices != NULL);
        gpuc_mig_lease_t *lease = gpuc_mig_devices_acquire(devices, text(get(step, "profile")), NULL, error);
        outcome->count = gpuc_mig_lease_is_created(lease);
        if (lease != NULL) scene->mig[here] = lease;
        gpuc_mig_devices_free(devices);
    } else if (strcmp(what, "unmig") == 0) {
        gpuc_mig_lease_release(scene->mig[here], error);
        scene->mig[here] = NULL;
    } else if (strcmp(what, "cdi") == 0) {
        outcome->text = own(gpuc_cdi_spec_json(wanted, scene->driver, error));
    } else {
        unknown("step", what);
    }
    gpuc_gpu_request_free(wanted);
}

static void with_process(scene_t *scene, const char *what, const cJSON *step, const cJSON *with, outcome_t *outcome) {
    gpuc_error_t **error = &outcome->error;
    gpuc_sandbox_t *sandbox = scene->sandboxes[place_of(scene, step)];
    size_t size;
    char *input = input_of(step, &size);
    if (strcmp(what, "communicate") == 0) {
        take_output(outcome, gpuc_sandbox_communicate(sandbox, input, size, patience(step, LIMIT), error));
    } else if (strcmp(what, "wait") == 0) {
        outcome->ended = gpuc_sandbox_wait(sandbox, patience(step, LIMIT), &outcome->status, error) == 1;
        if (!outcome->ended) outcome->text = strdup("running");
    } else if (strcmp(what, "line") == 0) {
        char line[256] = "";
        int stream = gpuc_sandbox_take_stream(sandbox, 1);
        for (size_t index = 0; index < sizeof line - 1 && read(stream, &line[index], 1) == 1 && line[index] != '\n'; index++) {
        }
        line[strcspn(line, "\n")] = '\0';
        close(stream);
        outcome->text = strdup(line);
    } else if (strcmp(what, "kill") == 0) {
        gpuc_sandbox_kill(sandbox, (int)number(get(step, "signal")), error);
    } else if (strcmp(what, "stats") == 0) {
        outcome->text = own(gpuc_sandbox_stats_json(sandbox, error));
    } else if (strcmp(what, "update") == 0) {
        gpuc_limits_t *made = limits(with);
        gpuc_sandbox_update(sandbox, made, error);
        gpuc_limits_free(made);
    } else if (strcmp(what, "pause") == 0) {
        gpuc_sandbox_pause(sandbox, error);
    } else if (strcmp(what, "resume") == 0) {
        gpuc_sandbox_resume(sandbox, error);
    } else {
        const char **command = words(get(with, "command"));
        gpuc_exec_t *exec = gpuc_exec_new(command);
        const cJSON *one, *part;
        for (int stream = 0; stream < 3; stream++) gpuc_exec_set_stdio(exec, stream, GPUC_STDIO_PIPED);
        cJSON_ArrayForEach(one, with) {
            if (strcmp(one->string, "env") == 0) cJSON_ArrayForEach(part, one) gpuc_exec_env(exec, part->string, text(part));
            else if (strcmp(one->string, "cwd") == 0) gpuc_exec_set_working_dir(exec, text(one));
            else if (strcmp(one->string, "user") == 0) gpuc_exec_set_user(exec, text(one));
            else if (strcmp(one->string, "command") != 0) unknown("option of a further process", one->string);
        }
        gpuc_process_t *process = gpuc_exec_spawn(exec, sandbox, error);
        if (process != NULL) take_output(outcome, gpuc_process_communicate(process, input, size, LIMIT, error));
        gpuc_process_free(process);
        gpuc_exec_free(exec);
        free(command);
    }
    free(input);
}

static void with_ports(scene_t *scene, const char *what, const cJSON *step, const cJSON *with, outcome_t *outcome) {
    gpuc_error_t **error = &outcome->error;
    gpuc_sandbox_t *sandbox = scene->sandboxes[place_of(scene, step)];
    const cJSON *port = get(step, "port"), *host_port = get(step, "host_port");
    if (strcmp(what, "dial") == 0) {
        int stream = gpuc_sandbox_dial(sandbox, (uint16_t)number(port), LIMIT, error);
        if (stream >= 0) outcome->text = talk(stream, get(step, "send"));
    } else if (strcmp(what, "ready") == 0) {
        gpuc_sandbox_wait_ready(sandbox, (uint16_t)number(port), patience(step, LIMIT), error);
    } else if (strcmp(what, "connect") == 0) {
        char *host = first_host(gpuc_sandbox_json(sandbox, error), "ports");
        outcome->text = served(host, get(step, "send"));
        free(host);
    } else if (strcmp(what, "publish") == 0) {
        uint16_t wanted = host_port == NULL ? 0 : (uint16_t)number(host_port);
        outcome->count = gpuc_sandbox_publish(sandbox, NULL, (uint16_t)number(port), wanted, error) != 0;
    } else if (strcmp(what, "unpublish") == 0 && host_port != NULL) {
        gpuc_sandbox_unpublish(sandbox, NULL, (uint16_t)number(host_port), error);
    } else if (strcmp(what, "unpublish") == 0) {
        char *host = first_host(gpuc_sandbox_json(sandbox, error), "ports");
        gpuc_sandbox_unpublish(sandbox, NULL, (uint16_t)atoi(strrchr(host, ':') + 1), error);
        free(host);
    } else if (strcmp(what, "ports") == 0) {
        outcome->count = length(gpuc_sandbox_json(sandbox, error), "ports");
    } else if (strcmp(what, "expose") == 0) {
        gpuc_host_service_t *made = service(with);
        outcome->count = gpuc_sandbox_expose_host(sandbox, made, error) != 0;
        gpuc_host_service_free(made);
    } else if (strcmp(what, "services") == 0) {
        outcome->count = length(gpuc_sandbox_json(sandbox, error), "host_services");
    } else {
        gpuc_sandbox_withdraw_host(sandbox, GPUC_PROTOCOL_TCP, (uint16_t)number(port), error);
    }
}

static bool among(const char *what, const char *const *names) {
    while (*names != NULL && strcmp(*names, what) != 0) names++;
    return *names != NULL;
}

static void act(scene_t *scene, const cJSON *step, outcome_t *outcome) {
    static const char *const images[] = {"build", "image", "tag", "remove", "images", "garbage", "import", "pull", "push", NULL};
    static const char *const processes[] = {"communicate", "wait", "line", "kill", "exec", "stats", "update", "pause",
                                            "resume", NULL};
    static const char *const ports[] = {"dial", "ready", "connect", "publish", "unpublish", "ports", "expose", "services",
                                        "withdraw", NULL};
    const char *what = text(get(step, "do"));
    const cJSON *with = get(step, "with");
    gpuc_error_t **error = &outcome->error;
    size_t here = place_of(scene, step);
    if (strcmp(what, "run") == 0 || strcmp(what, "start") == 0 || strcmp(what, "explain") == 0) {
        gpuc_config_t *config = config_of(scene, with, error);
        if (config == NULL) return;
        if (what[0] == 'e') {
            outcome->text = own(gpuc_config_explain(config, error));
        } else {
            gpuc_sandbox_t *sandbox = gpuc_sandbox_spawn(config, error);
            if (what[0] == 's') {
                if (sandbox != NULL) scene->sandboxes[here] = sandbox;
            } else if (sandbox != NULL) {
                size_t size;
                char *input = input_of(step, &size);
                take_output(outcome, gpuc_sandbox_communicate(sandbox, input, size, LIMIT, error));
                free(input);
                gpuc_sandbox_free(sandbox);
            }
        }
        gpuc_config_free(config);
    } else if (strcmp(what, "close") == 0) {
        gpuc_sandbox_close(scene->sandboxes[here], error);
        scene->sandboxes[here] = NULL;
    } else if (strcmp(what, "detach") == 0) {
        detach(scene, scene->sandboxes[here], outcome);
        scene->sandboxes[here] = NULL;
    } else if (strcmp(what, "file") == 0) {
        FILE *file = fopen(text(get(step, "path")), "r");
        CHECK(file != NULL);
        outcome->text = (char *)calloc(1, 4096);
        CHECK(fread(outcome->text, 1, 4095, file) > 0);
        fclose(file);
    } else if (strcmp(what, "probe") == 0) {
        gpuc_host_t *host = gpuc_host_probe(error);
        outcome->text = strdup(gpuc_host_text(host));
        gpuc_host_free(host);
    } else if (strcmp(what, "join") == 0) {
        gpuc_private_network_t *made = network(with);
        gpuc_network_member_t *member = gpuc_private_network_join(made, text(get(step, "name")), error);
        if (member != NULL) {
            scene->members[here] = member;
            outcome->text = strdup(gpuc_network_member_address(member, 0));
        }
        gpuc_private_network_free(made);
    } else if (strcmp(what, "leave") == 0) {
        gpuc_network_member_free(scene->members[here]);
        scene->members[here] = NULL;
    } else if (strcmp(what, "addresses") == 0) {
        char *json = gpuc_sandbox_json(scene->sandboxes[here], error);
        cJSON *all = cJSON_Parse(json);
        outcome->text = strdup(text(at(get(all, "addresses"), 0)));
        cJSON_Delete(all);
        gpuc_string_free(json);
    } else if (strcmp(what, "reserve") == 0) {
        const cJSON *pair;
        gpuc_port_mapping_t *mappings[PLACES];
        size_t count = 0;
        cJSON_ArrayForEach(pair, get(step, "ports")) mappings[count++] = gpuc_port_mapping_new(
            GPUC_PROTOCOL_TCP, (uint16_t)number(at(pair, 0)), (uint16_t)number(at(pair, 1)), 1);
        gpuc_reservation_t *reservation = gpuc_port_mapper_reserve((const gpuc_port_mapping_t *const *)mappings, count, error);
        while (count > 0) gpuc_port_mapping_free(mappings[--count]);
        if (reservation == NULL) return;
        scene->reservations[here] = reservation;
        outcome->count = length(gpuc_reservation_json(reservation, error), NULL);
    } else if (strcmp(what, "relay") == 0) {
        gpuc_network_namespace_t *namespace_of = gpuc_sandbox_network_namespace(scene->sandboxes[here], error);
        scene->published[here] = gpuc_reservation_relay(scene->reservations[here], namespace_of, error);
        scene->reservations[here] = NULL;
        gpuc_network_namespace_free(namespace_of);
        outcome->count = length(gpuc_published_json(scene->published[here], error), NULL);
    } else if (strcmp(what, "relayed") == 0) {
        char *host = first_host(gpuc_published_json(scene->published[here], error), NULL);
        outcome->text = served(host, get(step, "send"));
        free(host);
    } else if (strcmp(what, "unrelay") == 0) {
        gpuc_published_free(scene->published[here]);
        scene->published[here] = NULL;
    } else if (among(what, images)) {
        with_images(scene, what, step, with, outcome);
    } else if (among(what, processes)) {
        with_process(scene, what, step, with, outcome);
    } else if (among(what, ports)) {
        with_ports(scene, what, step, with, outcome);
    } else {
        with_gpus(scene, what, step, with, outcome);
    }
}

#endif
