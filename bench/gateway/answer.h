/* An answer, byte by byte: HTTP's head and chunks, lines of server-sent events, events; and what an answer must be to count.
 *
 * Anything may be cut anywhere. Takes bytes and times; reads no socket and starts no request.
 */
#pragma once
#include "state.h"

/* ---- the ends of a request ---- */

static void note_error(enum failure kind, const char *text, size_t n) {
    if (found.first_error[0]) return;
    int at = snprintf(found.first_error, sizeof found.first_error, "%s: ", FAILURE_NAMES[kind]);
    for (size_t i = 0; i < n && at < (int)sizeof found.first_error - 1; i++)
        found.first_error[at++] = text[i] >= ' ' && text[i] <= '~' && text[i] != '"' && text[i] != '\\' ? text[i] : '\'';
}

static void hang_up(struct conn *c) {
    close(c->fd);
    open_now--;
    free(c->line.at);
    free(c->other.at);
    free(c->data.at);
    free(c->request.at);
    free(c);
}

static void fail(struct conn *c, enum failure kind, const char *text) {
    found.failed[kind]++;
    note_error(kind, text, strlen(text));
    pull(&flying, c);
    hang_up(c);
}

/* The answer is complete. True if the connection lives on. */
static bool finish(struct conn *c, ns_t now) {
    enum failure kind = FAILURES;
    if (c->bad) kind = PROTOCOL;
    else if (c->status != 200) kind = STATUS;
    else if (c->error_event) kind = ERROR_EVENT;
    else if (!c->done) kind = NO_DONE;
    else if (ask.tokens && (c->usage_completion >= 0 ? c->usage_completion : c->content_events) != ask.tokens)
        kind = WRONG_TOKENS;
    if (kind != FAILURES) {
        char words[120];
        snprintf(words, sizeof words, "status %d, %ld events with content, usage says %ld; ", c->status, c->content_events,
                 c->usage_completion);
        struct text all = {0};
        append(&all, words, strlen(words));
        append(&all, c->data.at ? c->data.at : "", c->data.len);
        append(&all, c->line.at ? c->line.at : "", c->line.len);
        append(&all, c->other.at ? c->other.at : "", c->other.len);
        note_error(kind, all.at, all.len);
        free(all.at);
        found.failed[kind]++;
    } else {
        if (!(found.ok & (found.ok - 1)) && !(found.ends = realloc(found.ends, (size_t)(found.ok ? 2 * found.ok : 1) * sizeof(ns_t))))
            die("memory");
        found.ends[found.ok++] = now;
        found.completion_tokens += c->usage_completion >= 0 ? c->usage_completion : c->content_events;
        record(&found.e2e, now - c->due);
    }
    pull(&flying, c);
    if (!c->keep || c->bad) {
        hang_up(c);
        return false;
    }
    c->place = IDLE;
    push(&resting, c);
    return true;
}

/* ---- server-sent events ---- */

static const char *after_key(const char *data, const char *key) {
    const char *at = strstr(data, key);
    if (!at) return NULL;
    at += strlen(key);
    while (*at == ' ') at++;
    return *at == ':' ? at + 1 + strspn(at + 1, " ") : NULL;
}

static long count_after(const char *data, const char *key) {
    const char *at = after_key(data, key);
    return at && *at >= '0' && *at <= '9' ? atol(at) : -1;
}

static bool has_text(const char *data, const char *key) {
    const char *at = after_key(data, key);
    return at && at[0] == '"' && at[1] != '"';
}

static void take_usage(struct conn *c, const char *data) {
    long completion = count_after(data, "\"completion_tokens\""), prompt = count_after(data, "\"prompt_tokens\"");
    if (completion < 0 || prompt < 0) return;
    c->usage_completion = completion;
    if (found.prompt_min < 0 || prompt < found.prompt_min) found.prompt_min = prompt;
    if (prompt > found.prompt_max) found.prompt_max = prompt;
}

/* A key inside an answer's text has its quotes escaped, so searching for bare keys finds keys only. */
static void take_event(struct conn *c, ns_t now) {
    const char *data = c->data.at;
    found.events++;
    if (!strcmp(data, "[DONE]")) {
        c->done = true;
    } else if (c->done) {
        c->bad = true;
    } else if (data[0] != '{' || !strncmp(data + 1 + strspn(data + 1, " "), "\"error\"", 7)) {
        c->error_event = true;
        return;                                         /* its text stays for the account */
    } else {
        if (strstr(data, "\"usage\"")) take_usage(c, data);
        if (has_text(data, "\"content\"") || has_text(data, "\"text\"")) {
            found.content_events++;
            if (c->content_events++) record(&found.gap, now - c->last_event);
            else record(&found.ttft, now - c->due);
            c->last_event = now;
        }
    }
    c->data.len = 0;
}

static void take_line(struct conn *c, ns_t now) {
    struct text *line = &c->line;
    if (!line->len) {
        if (c->data.len && !c->error_event) take_event(c, now);
    } else if (!strncmp(line->at, "data:", 5) && !c->error_event) {
        size_t from = line->len > 5 && line->at[5] == ' ' ? 6 : 5;
        if (c->data.len) append(&c->data, "\n", 1);
        append(&c->data, line->at + from, line->len - from);
    }
    line->len = 0;                                      /* comments, ids and names of events mean nothing here */
}

static void take_body(struct conn *c, const char *at, size_t n, ns_t now) {
    if (!c->sse) {
        if (c->line.len < 300) append(&c->line, at, n);
        return;
    }
    for (const char *end = at + n; at < end;) {
        if (c->skip_lf && *at == '\n') at++;
        c->skip_lf = false;
        const char *stop = at;
        while (stop < end && *stop != '\n' && *stop != '\r') stop++;
        append(&c->line, at, (size_t)(stop - at));
        if (c->line.len > MAX_LINE) c->bad = true;
        if (stop < end) {
            c->skip_lf = *stop++ == '\r';
            take_line(c, now);
        }
        at = stop;
    }
}

/* ---- HTTP ---- */

static void take_header(struct conn *c, char *line) {
    if (!c->status) {
        if (sscanf(line, "HTTP/1.%*d %d", &c->status) != 1 || c->status < 100 || c->status >= MAX_STATUS) c->bad = true;
        else c->keep = line[7] != '0';
        return;
    }
    char *value = strchr(line, ':');
    if (!value) { c->bad = true; return; }
    *value++ = 0;
    value += strspn(value, " \t");
    if (!strcasecmp(line, "content-length")) c->left = atoll(value);
    else if (!strcasecmp(line, "transfer-encoding")) c->chunked = strcasestr(value, "chunked") != NULL;
    else if (!strcasecmp(line, "content-type")) c->sse = strcasestr(value, "text/event-stream") != NULL;
    else if (!strcasecmp(line, "connection")) c->keep = !strcasestr(value, "close");
}

static void end_of_head(struct conn *c) {
    if (c->status == 100) {
        c->status = 0;
        return;
    }
    found.status[c->status]++;
    c->part = c->chunked ? SIZE : c->left >= 0 ? FIXED : UNTIL_CLOSE;
    if (c->part == UNTIL_CLOSE) c->keep = false;
}

/* Lines of the head, of chunk sizes and of trailers. True when the answer is complete. */
static bool take_framing(struct conn *c) {
    struct text *line = &c->line;
    while (line->len && line->at[line->len - 1] == '\r') line->at[--line->len] = 0;
    bool complete = false;
    if (c->part == HEAD) {
        if (line->len) take_header(c, line->at);
        else if (c->status) { end_of_head(c); complete = c->part == FIXED && !c->left; }
    } else if (c->part == SIZE) {
        char *end;
        c->left = strtoll(line->len ? line->at : "", &end, 16);
        if (!line->len || end == line->at || c->left < 0) c->bad = true;
        c->part = c->left ? DATA : TRAILER;
    } else if (c->part == DATA_END) {
        c->bad |= line->len != 0;
        c->part = SIZE;
    } else complete = !line->len;
    line->len = 0;
    return complete;
}

/* Chunk framing and event lines may both be cut anywhere: the half line of one waits in `other` while the other is read. */
static void swap_lines(struct conn *c) {
    struct text t = c->line;
    c->line = c->other;
    c->other = t;
}

/* Bytes from the socket. True when the connection can be used on or is gone: nothing more is to be read for this request. */
static bool take(struct conn *c, const char *at, size_t n, ns_t now) {
    const char *end = at + n;
    while (at < end && !c->bad) {
        if (c->part == DATA || c->part == FIXED || c->part == UNTIL_CLOSE) {
            size_t part = (size_t)(end - at);
            if (c->part != UNTIL_CLOSE && (int64_t)part > c->left) part = (size_t)c->left;
            take_body(c, at, part, now);
            at += part;
            if (c->part == UNTIL_CLOSE || (c->left -= (int64_t)part)) continue;
            if (c->part == FIXED) { c->bad |= at < end; finish(c, now); return true; }
            c->part = DATA_END;
            swap_lines(c);
            continue;
        }
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        append(&c->line, at, (size_t)((stop ? stop : end) - at));
        if (c->line.len > MAX_LINE) c->bad = true;
        at = stop ? stop + 1 : end;
        if (!stop) break;
        if (take_framing(c)) { c->bad |= at < end; finish(c, now); return true; }
        if (c->part == DATA) swap_lines(c);
    }
    if (c->bad) { finish(c, now); return true; }
    return false;
}
