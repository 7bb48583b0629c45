/* What libqb itself costs: a server that answers request N with N bytes, on libqb's own loop.
 *
 * echo NAME
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include <qb/qbipcs.h>
#include <qb/qbloop.h>

static qb_loop_t *loop;
static char zeros[1024 * 1024];

static int32_t accept_all(qb_ipcs_connection_t *c, uid_t uid, gid_t gid)
{
	(void)c, (void)uid, (void)gid;
	return 0;
}

static int32_t answer(qb_ipcs_connection_t *c, void *data, size_t size)
{
	const struct qb_ipc_request_header *request = data;
	struct qb_ipc_response_header response = {0};
	struct iovec parts[2] = {{&response, sizeof(response)}, {zeros, (size_t)request->id}};
	(void)size;
	response.id = request->id;
	response.size = (int32_t)sizeof(response) + request->id;
	qb_ipcs_response_sendv(c, parts, 2);
	return 0;
}

static int32_t closed(qb_ipcs_connection_t *c)
{
	(void)c;
	return 0;
}

static void ignore(qb_ipcs_connection_t *c)
{
	(void)c;
}

static int32_t job_add(enum qb_loop_priority p, void *data, qb_loop_job_dispatch_fn fn)
{
	return qb_loop_job_add(loop, p, data, fn);
}

static int32_t dispatch_add(enum qb_loop_priority p, int32_t fd, int32_t events, void *data,
			    qb_ipcs_dispatch_fn_t fn)
{
	return qb_loop_poll_add(loop, p, fd, events, data, fn);
}

static int32_t dispatch_mod(enum qb_loop_priority p, int32_t fd, int32_t events, void *data,
			    qb_ipcs_dispatch_fn_t fn)
{
	return qb_loop_poll_mod(loop, p, fd, events, data, fn);
}

static int32_t dispatch_del(int32_t fd)
{
	return qb_loop_poll_del(loop, fd);
}

int main(int argc, char **argv)
{
	struct qb_ipcs_service_handlers handlers = {accept_all, NULL, answer, closed, ignore};
	struct qb_ipcs_poll_handlers poll = {job_add, dispatch_add, dispatch_mod, dispatch_del};
	qb_ipcs_service_t *service;
	if (argc != 2)
		return 2;
	loop = qb_loop_create();
	service = qb_ipcs_create(argv[1], 0, QB_IPC_SHM, &handlers);
	qb_ipcs_poll_handlers_set(service, &poll);
	if (qb_ipcs_run(service))
		return 1;
	puts("ready");
	fflush(stdout);
	qb_loop_run(loop); /* until it is killed */
	return 0;
}
