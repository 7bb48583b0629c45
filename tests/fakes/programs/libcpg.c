/* A libcpg to preload in tests: each call returns the status that the test has set for it.
 *
 * A dispatch makes one callback if an event is queued, else none. The descriptor is one end of a
 * pair of sockets; the test can close both ends. As libqb does, each message writes a byte into it.
 */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <corosync/cpg.h>

enum { CALLS = 16 };

static struct { const char *name; cs_error_t status; int count; } calls[CALLS];
static cpg_model_v1_data_t callbacks;
static void *context;
static int sockets[2];
static int waiting;

static cs_error_t answer(const char *name)
{
	int index;
	for (index = 0; index < CALLS - 1 && calls[index].name; index++)
		if (strcmp(calls[index].name, name) == 0)
			break;
	if (!calls[index].name) {
		calls[index].name = strdup(name);
		calls[index].status = CS_OK;
	}
	calls[index].count++;
	return calls[index].status;
}

void fake_answer(const char *name, int status)
{
	int index;
	answer(name);
	for (index = 0; index < CALLS; index++)
		if (calls[index].name && strcmp(calls[index].name, name) == 0) {
			calls[index].status = (cs_error_t)status;
			calls[index].count = 0;
		}
}

int fake_count(const char *name)
{
	int index;
	for (index = 0; index < CALLS; index++)
		if (calls[index].name && strcmp(calls[index].name, name) == 0)
			return calls[index].count;
	return 0;
}

void fake_queue(int events) { waiting = events; }
void fake_hang_up(void) { close(sockets[1]); }
void fake_lose_descriptor(void) { close(sockets[0]); }

void fake_read(void)
{
	char bytes[64];
	while (recv(sockets[1], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		continue;
}

cs_error_t cpg_model_initialize(cpg_handle_t *handle, cpg_model_t model,
				cpg_model_data_t *model_data, void *owner)
{
	cs_error_t status = answer("cpg_model_initialize");
	if (status != CS_OK || model != CPG_MODEL_V1 ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0)
		return status;
	callbacks = *(cpg_model_v1_data_t *)model_data;
	context = owner;
	*handle = 1;
	return CS_OK;
}

cs_error_t cpg_finalize(cpg_handle_t handle) { (void)handle; return answer("cpg_finalize"); }

cs_error_t cpg_fd_get(cpg_handle_t handle, int *fd)
{
	(void)handle;
	*fd = sockets[0];
	return answer("cpg_fd_get");
}

cs_error_t cpg_context_get(cpg_handle_t handle, void **owner)
{
	(void)handle;
	*owner = context;
	return CS_OK;
}

cs_error_t cpg_max_atomic_msgsize_get(cpg_handle_t handle, uint32_t *size)
{
	(void)handle;
	*size = 1000;
	return answer("cpg_max_atomic_msgsize_get");
}

cs_error_t cpg_dispatch(cpg_handle_t handle, cs_dispatch_flags_t types)
{
	struct cpg_name group = { 2, "g" };
	char message[] = "message";
	cs_error_t status = answer("cpg_dispatch");
	if (types != CS_DISPATCH_ONE_NONBLOCKING)
		return CS_ERR_INVALID_PARAM;
	if (waiting > 0) {
		waiting--;
		callbacks.cpg_deliver_fn(handle, &group, 0xFFFFFFFF, 7, message, sizeof(message) - 1);
	}
	return status;
}

/* The name must have its NUL within its length. */
static cs_error_t answer_for(const char *name, const struct cpg_name *group)
{
	cs_error_t status = answer(name);
	if (strnlen(group->value, CPG_MAX_NAME_LENGTH) + 1 != group->length)
		return CS_ERR_INVALID_PARAM;
	return status;
}

cs_error_t cpg_join(cpg_handle_t handle, const struct cpg_name *group)
{
	(void)handle;
	return answer_for("cpg_join", group);
}

cs_error_t cpg_leave(cpg_handle_t handle, const struct cpg_name *group)
{
	(void)handle;
	return answer_for("cpg_leave", group);
}

cs_error_t cpg_mcast_joined(cpg_handle_t handle, cpg_guarantee_t guarantee,
			    const struct iovec *iovec, unsigned int iov_len)
{
	(void)handle; (void)iovec;
	if (guarantee != CPG_TYPE_AGREED || iov_len != 1)
		return CS_ERR_INVALID_PARAM;
	if (send(sockets[0], "", 1, MSG_DONTWAIT) != 1)
		return CS_ERR_LIBRARY; /* where libqb tries again without a pause */
	return answer("cpg_mcast_joined");
}

cs_error_t cpg_local_get(cpg_handle_t handle, unsigned int *nodeid)
{
	(void)handle;
	*nodeid = 3;
	return answer("cpg_local_get");
}
