/* A test client of a libqb service: requests as Proxmox VE's tools send them, and invalid ones.
 *
 * client NAME ask ID HEX [MORE]   one request; prints the error and the answer's content in hex.
 *                                 The request's header claims MORE bytes than are sent
 * client NAME time COUNT ID HEX   the request COUNT times; prints median and 99th percentile in ns
 * client NAME flood COUNT         COUNT requests that read, of all kinds; prints the failures
 * client NAME garbage SEED        endless requests with random headers and contents
 * client NAME unread ID           endless requests, without reading the answers
 * client NAME half                a request whose header claims more than is sent; then waits
 * client NAME hold COUNT          COUNT connections with small buffers; prints how many succeed
 * client NAME mute                several requests, but only one announcement to the server
 * client NAME noisy               announcements of messages, without sending any
 * client NAME silent              connects the socket and never authenticates
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <qb/qbipcc.h>

#define BUFFER (1024 * 1024) /* the size that PVE::IPCC uses */
#define TIMEOUT_MS 10000

static char answer[BUFFER], content[BUFFER];
static int more; /* bytes that a request's header claims and the request does not have */

static qb_ipcc_connection_t *connect_to(const char *name)
{
	qb_ipcc_connection_t *c = qb_ipcc_connect(name, BUFFER);
	if (!c) {
		printf("connect %d\n", errno);
		exit(3);
	}
	return c;
}

/* Returns the length of the answer's content, or libqb's negative errno; sets the server's *error. */
static ssize_t ask(qb_ipcc_connection_t *c, int id, const char *data, size_t size, int *error)
{
	struct qb_ipc_request_header request = {.id = id, .size = (int)(sizeof(request) + size) + more};
	struct iovec parts[2] = {{&request, sizeof(request)}, {(void *)data, size}};
	ssize_t got = qb_ipcc_sendv_recv(c, parts, 2, answer, sizeof(answer), TIMEOUT_MS);
	const struct qb_ipc_response_header *response = (void *)answer;
	if (got < 0)
		return got;
	if (got < (ssize_t)sizeof(*response) || response->size != got)
		return -EPROTO;
	*error = response->error;
	return got - (ssize_t)sizeof(*response);
}

static size_t unhex(const char *hex)
{
	size_t size = strlen(hex) / 2;
	for (size_t i = 0; i < size; i++) {
		unsigned int byte;
		if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
			exit(4);
		content[i] = (char)byte;
	}
	return size;
}

static int one(const char *name, int id, const char *hex)
{
	qb_ipcc_connection_t *c = connect_to(name);
	int error = 0;
	ssize_t got = ask(c, id, content, unhex(hex), &error);
	printf("%d ", got < 0 ? (int)got : error);
	for (ssize_t i = 0; i < got; i++)
		printf("%02x", (unsigned char)answer[sizeof(struct qb_ipc_response_header) + (size_t)i]);
	printf("\n");
	qb_ipcc_disconnect(c);
	return got < 0;
}

static int64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

static int measure(const char *name, size_t count, int id, const char *hex)
{
	qb_ipcc_connection_t *c = connect_to(name);
	int64_t *times = calloc(count, sizeof(*times));
	size_t size = unhex(hex);
	int error = 0;
	for (size_t i = 0; i < count; i++) {
		int64_t start = now_ns();
		ssize_t got = ask(c, id, content, size, &error);
		times[i] = now_ns() - start;
		if (got < 0 || error) {
			printf("failed %d\n", got < 0 ? (int)got : error);
			return 1;
		}
	}
	qsort(times, count, sizeof(*times), compare);
	printf("%lld %lld\n", (long long)times[count / 2], (long long)times[count * 99 / 100]);
	free(times);
	qb_ipcc_disconnect(c);
	return 0;
}

static int flood(const char *name, size_t count)
{
	static const struct { int id; const char *data; size_t size; } reads[] = {
		{1, "", 0}, {2, "", 0}, {3, "", 0}, {6, "flood.cfg", 10}, {10, "", 0},
		{8, "\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 17},
	};
	qb_ipcc_connection_t *c = connect_to(name);
	size_t failed = 0;
	for (size_t i = 0; i < count; i++) {
		int error = 0, kind = (int)(i % (sizeof(reads) / sizeof(reads[0])));
		ssize_t got = ask(c, reads[kind].id, reads[kind].data, reads[kind].size, &error);
		failed += got <= 0 || error;
	}
	printf("%zu\n", failed);
	qb_ipcc_disconnect(c);
	return failed != 0;
}

static int garbage(const char *name, unsigned int seed)
{
	qb_ipcc_connection_t *c = connect_to(name);
	srand(seed);
	puts("ready");
	fflush(stdout);
	for (;;) {
		size_t size = sizeof(struct qb_ipc_request_header) + (size_t)rand() % 600;
		struct qb_ipc_request_header *request = (void *)content;
		for (size_t i = 0; i < size; i++)
			content[i] = (char)rand();
		request->id = rand() % 16;
		switch (rand() % 4) {
		case 0: request->size = rand() - RAND_MAX / 2; break;
		case 1: request->size = rand() % 40; break;
		default: request->size = (int)size;
		}
		ssize_t sent = qb_ipcc_send(c, content, size);
		if (sent < 0 && sent != -EAGAIN)
			return 0;
		if (rand() % 4)
			(void)qb_ipcc_recv(c, answer, sizeof(answer), 100);
	}
}

static int unread(const char *name, int id)
{
	qb_ipcc_connection_t *c = connect_to(name);
	struct qb_ipc_request_header request = {.id = id, .size = sizeof(request)};
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t sent = qb_ipcc_send(c, &request, sizeof(request));
		if (sent < 0 && sent != -EAGAIN)
			return 0; /* disconnected by the server */
		if (sent < 0)
			usleep(1000);
	}
}

static int half(const char *name)
{
	qb_ipcc_connection_t *c = connect_to(name);
	struct qb_ipc_request_header request = {.id = 5, .size = BUFFER};
	(void)qb_ipcc_send(c, &request, sizeof(request));
	puts("ready");
	fflush(stdout);
	pause();
	return 0;
}

static int hold(const char *name, int count)
{
	int held = 0;
	while (held < count && qb_ipcc_connect(name, 4096))
		held++;
	printf("%d\n", held);
	fflush(stdout);
	pause();
	return 0;
}

static int silent(const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char byte;
	strncpy(address.sun_path + 1, name, sizeof(address.sun_path) - 2);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return 3;
	puts("ready");
	fflush(stdout);
	return read(fd, &byte, 1) > 0; /* until the server disconnects */
}

static int is_mute;

/* Replaces libc's send(), by which libqb announces a message to the server. */
ssize_t send(int fd, const void *data, size_t size, int flags)
{
	return is_mute ? (ssize_t)size : sendto(fd, data, size, flags, NULL, 0);
}

static int mute(const char *name)
{
	qb_ipcc_connection_t *c = connect_to(name);
	struct qb_ipc_request_header request = {.id = 2, .size = sizeof(request)};
	is_mute = 1;
	for (int i = 0; i < 4; i++)
		(void)qb_ipcc_send(c, &request, sizeof(request));
	is_mute = 0;
	(void)qb_ipcc_send(c, &request, sizeof(request));
	puts("ready");
	fflush(stdout);
	pause();
	return 0;
}

static int noisy(const char *name)
{
	qb_ipcc_connection_t *c = connect_to(name);
	int fd;
	if (qb_ipcc_fd_get(c, &fd))
		return 4;
	send(fd, content, 1000, 0);
	puts("ready");
	fflush(stdout);
	return recv(fd, content, 1, 0) > 0; /* until the server disconnects */
}

int main(int argc, char **argv)
{
	const char *name = argc > 2 ? argv[1] : "", *what = argc > 2 ? argv[2] : "";
	if (!strcmp(what, "ask") && (argc == 5 || argc == 6)) {
		more = argc == 6 ? atoi(argv[5]) : 0;
		return one(name, atoi(argv[3]), argv[4]);
	}
	if (!strcmp(what, "time") && argc == 6)
		return measure(name, (size_t)atol(argv[3]), atoi(argv[4]), argv[5]);
	if (!strcmp(what, "flood") && argc == 4)
		return flood(name, (size_t)atol(argv[3]));
	if (!strcmp(what, "garbage") && argc == 4)
		return garbage(name, (unsigned int)atoi(argv[3]));
	if (!strcmp(what, "unread") && argc == 4)
		return unread(name, atoi(argv[3]));
	if (!strcmp(what, "half"))
		return half(name);
	if (!strcmp(what, "hold") && argc == 4)
		return hold(name, atoi(argv[3]));
	if (!strcmp(what, "mute"))
		return mute(name);
	if (!strcmp(what, "noisy"))
		return noisy(name);
	if (!strcmp(what, "silent"))
		return silent(name);
	return 2;
}
