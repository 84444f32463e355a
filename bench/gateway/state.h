/* Histograms, what was asked, what was found, and connections: the state that the other parts of the load generator share. */
#pragma once
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

typedef int64_t ns_t;
#define SECOND 1000000000LL
#define MARK "@@@@@@@@"
#define MARK_LEN 8
#define MAX_MARKS 64
#define READ_BYTES (1 << 16)
#define MAX_LINE (1 << 20)
#define MAX_STATUS 600
#define MAX_EVENTS 512

/* ---- histograms: 64 steps per doubling, so a figure is right to 1.6 %; values are nanoseconds, kept in units of 128 ns ---- */

#define STEPS 64
#define BUCKETS (STEPS * 40)
struct histogram { uint64_t count[BUCKETS], n; double sum; ns_t max; };

static int bucket(uint64_t value) {
    if (value < STEPS) return (int)value;
    int top = 63 - __builtin_clzll(value);
    int index = STEPS * (top - 5) + (int)(value >> (top - 6)) - STEPS;
    return index < BUCKETS ? index : BUCKETS - 1;
}

static double bucket_middle(int index) {
    if (index < STEPS) return index + 0.5;
    int top = index / STEPS + 5;
    return ldexp(STEPS + index % STEPS + 0.5, top - 6);
}

static void record(struct histogram *h, ns_t value) {
    if (value < 0) value = 0;
    h->count[bucket((uint64_t)value >> 7)]++;
    h->n++;
    h->sum += (double)value;
    if (value > h->max) h->max = value;
}

static double quantile_ms(const struct histogram *h, double q) {
    uint64_t rank = (uint64_t)ceil(q * (double)h->n), seen = 0;
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += h->count[i]) >= rank && h->n) return fmin(bucket_middle(i) * 128, (double)h->max) / 1e6;
    return 0;
}

/* ---- what was asked, and what was found ---- */

static struct {
    const char *host, *path, *body, *bearer;
    int port, tokens, connections, concurrency;
    double rate, seconds, timeout, ramp;
    long requests;
    uint64_t seed;
    bool poisson, progress;
} ask = {.host = "127.0.0.1", .path = "/v1/chat/completions", .bearer = "", .port = 8000, .tokens = 32,
         .connections = 8192, .seconds = 10, .timeout = 60, .requests = -1, .seed = 1};

enum failure { CONNECT, RESET, CLOSED_EARLY, TIMEOUT, STATUS, PROTOCOL, ERROR_EVENT, NO_DONE, WRONG_TOKENS, FAILURES };
static const char *const FAILURE_NAMES[FAILURES] = {"connect", "reset", "closed_early", "timeout", "status",
                                                    "protocol", "error_event", "no_done", "wrong_tokens"};
static struct {
    long sent, ok, failed[FAILURES], status[MAX_STATUS], events, content_events, completion_tokens, retried, opened;
    long prompt_min, prompt_max, peak_open;
    uint64_t bytes;
    struct histogram ttft, e2e, gap, late;
    ns_t first_sent, last_sent;
    ns_t *ends;                                         /* of the requests that went well */
    char first_error[400];
} found = {.prompt_min = -1};

/* ---- one connection ---- */

enum place { IDLE, CONNECTING, WAITING };               /* of a connection */
enum part { HEAD, SIZE, DATA, DATA_END, TRAILER, FIXED, UNTIL_CLOSE }; /* of an answer */

struct text { char *at; size_t len, room; };

struct conn {
    int fd;
    enum place place;
    enum part part;
    bool reused, writing, chunked, sse, keep, done, skip_lf, error_event, bad;
    int status, problem;                                /* problem: why the dialling failed at once */
    long number, content_events, usage_completion;
    int64_t left;                                       /* bytes of this chunk or body; -1: not told */
    size_t sent;                                        /* of the request */
    ns_t due, last_event, deadline;
    struct text line, other, data, request;             /* `other`: see swap_lines */
    struct conn *before, *after;                        /* in flight: oldest first; idle: longest idle first */
};

struct list { struct conn *head, *tail; long n; };
static struct list flying, resting;
static int epoll_fd, timer_fd;
static struct text body_text;
static size_t marks[MAX_MARKS];
static int n_marks;
static long open_now, backlog_n;
static ns_t *backlog;                                   /* due times that wait for a connection */
static size_t backlog_at, backlog_room;
static struct sockaddr_in server_address;

static ns_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void append(struct text *t, const char *from, size_t n) {
    if (t->len + n + 1 > t->room) {
        t->room = 2 * (t->len + n + 1);
        if (!(t->at = realloc(t->at, t->room))) die("memory");
    }
    memcpy(t->at + t->len, from, n);
    t->at[t->len += n] = 0;
}

static void push(struct list *l, struct conn *c) {
    c->before = l->tail;
    c->after = NULL;
    if (l->tail) l->tail->after = c; else l->head = c;
    l->tail = c;
    l->n++;
}

static void pull(struct list *l, struct conn *c) {
    if (c->before) c->before->after = c->after; else l->head = c->after;
    if (c->after) c->after->before = c->before; else l->tail = c->before;
    l->n--;
}

static void watch(struct conn *c, uint32_t events, int operation) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &e)) die("epoll_ctl");
}
