// SPDX-License-Identifier: Apache-2.0
// A TCG plugin for QEMU's user-mode emulator that writes the number of executed guest instructions on request.
//
// The guest requests it with sched_get_priority_max(TFQ_MARKER), a system call without any effect. The plugin then
// appends a line "<instructions> <threads>" to the file that its argument out=FILE names. It counts the instructions of
// each translated block that the guest executes. Work of the kernel in system calls is not counted.
//
// Distributions ship no header of this API, and C library headers may be missing, so everything needed is declared
// here. Source: QEMU's documentation of TCG plugins, API version 1 (QEMU 6 to 8).
// Compile with -DTFQ_MARKER=<number> -shared -fPIC -nostdlib.

typedef unsigned long long u64;
typedef struct block block;

extern unsigned long qemu_plugin_tb_n_insns(const block *);
extern void qemu_plugin_register_vcpu_init_cb(u64, void (*)(u64, unsigned));
extern void qemu_plugin_register_vcpu_tb_trans_cb(u64, void (*)(u64, block *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(block *, int, void *, u64);
extern void qemu_plugin_register_vcpu_syscall_cb(
    u64, void (*)(u64, unsigned, long long, u64, u64, u64, u64, u64, u64, u64, u64));
extern int open(const char *, int, ...);
extern int dprintf(int, const char *, ...);

enum { ADD_U64 = 0, SCHED_GET_PRIORITY_MAX = 125, OWNER_ONLY = 0600 };
// Linux uses these values on all hosts except alpha, mips, parisc and sparc.
enum { WRITE_ONLY = 01, CREATE = 0100, APPEND = 02000, CLOSE_ON_EXEC = 02000000 };

int qemu_plugin_version = 1;

static u64 instructions;
static unsigned threads;
static int file;

static void on_thread(u64 id, unsigned index) { threads++; }

static void on_block(u64 id, block *translated)
{
    qemu_plugin_register_vcpu_tb_exec_inline(translated, ADD_U64, &instructions, qemu_plugin_tb_n_insns(translated));
}

static void on_syscall(u64 id, unsigned thread, long long number, u64 first, u64 b, u64 c, u64 d, u64 e, u64 f, u64 g,
                       u64 h)
{
    if (number == SCHED_GET_PRIORITY_MAX && (unsigned)first == (unsigned)TFQ_MARKER)
        dprintf(file, "%llu %u\n", instructions, threads);
}

int qemu_plugin_install(u64 id, const void *emulator, int number, char **arguments)
{
    const char *out = number == 1 ? arguments[0] : "";
    if (out[0] != 'o' || out[1] != 'u' || out[2] != 't' || out[3] != '=')
        return 1;
    file = open(out + 4, WRITE_ONLY | CREATE | APPEND | CLOSE_ON_EXEC, OWNER_ONLY);
    if (file < 0)
        return 1;
    qemu_plugin_register_vcpu_init_cb(id, on_thread);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
